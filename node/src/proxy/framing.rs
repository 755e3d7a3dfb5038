//! Heads and chunks of HTTP/1.1, read strictly (RFC 9112): where a message ends, and what it says.
//!
//! Readers are lenient where the RFC allows it: they take a lone line feed for a line's end, or `Transfer-Encoding` over
//! `Content-Length`. Messages on which two readers could disagree are refused here instead.

use bytes::{Buf as _, Bytes, BytesMut};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::http::{request, response};
use hyper::{Method, Request, Response, StatusCode, Uri, Version};
use memchr::{memchr_iter, memchr2_iter};

use super::refuse::{Reason, Refusal};

/// Header fields of one request; more are refused.
pub(super) const FIELDS_MAX: usize = 100;
/// The same between two proxies, which say some things of their own.
pub(super) const PEER_FIELDS_MAX: usize = FIELDS_MAX + 16;
/// Fields that are mostly added to a message on its way: `via`, and what proxies tell each other.
const FIELDS_ADDED: usize = 6;
/// Bytes of one chunk's size line, extensions included.
const CHUNK_LINE_BYTES_MAX: usize = 1024;

/// What follows a request head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// No body.
    None,
    /// A body of so many bytes, at least one.
    Length(u64),
    /// A chunked body.
    Chunked,
}

/// Looks for the end of the head in `bytes`, of which the first `*scanned` were looked at before.
///
/// Returns the head's length, its empty line included.
///
/// # Errors
/// A line feed without carriage return, or a carriage return without line feed.
pub(super) fn head_end(bytes: &[u8], scanned: &mut usize) -> Result<Option<usize>, Refusal> {
    // The last byte is looked at again when more arrive: a carriage return may stand at the very end.
    let start = scanned.saturating_sub(1);
    for offset in memchr2_iter(b'\r', b'\n', bytes.get(start..).unwrap_or_default()) {
        let at = start + offset;
        let is_fitting = match bytes.get(at) {
            Some(b'\r') => matches!(bytes.get(at + 1), Some(b'\n') | None),
            // What is before the first byte was looked at before, or is nothing.
            _ => offset == 0 || bytes.get(at - 1) == Some(&b'\r'),
        };
        if !is_fitting {
            return Err(bad("a line of the request head does not end with CR LF"));
        }
        if bytes.get((at + 1).wrapping_sub(4)..=at) == Some(b"\r\n\r\n") {
            return Ok(Some(at + 1));
        }
    }
    *scanned = bytes.len();
    Ok(None)
}

/// Checks a whole head and says what follows it.
///
/// # Errors
/// The refusal to answer with.
#[cfg(test)]
pub(super) fn check_head(head: &[u8]) -> Result<Framing, Refusal> {
    scan_request(head, FIELDS_MAX, |_, _| Ok(())).map(|(_, framing)| framing)
}

/// Reads a whole head of at most `fields_max` fields strictly; says what follows it too.
///
/// # Errors
/// The refusal to answer with.
pub(super) fn read_request(head: &Bytes, fields_max: usize) -> Result<(request::Parts, Framing), Refusal> {
    let mut headers = room_for(head, fields_max);
    let (line, framing) = scan_request(head, fields_max, |name, value| {
        put(&mut headers, head, name, value).ok_or_else(|| bad("a header field cannot be read"))
    })?;
    let (mut parts, ()) = Request::new(()).into_parts();
    parts.method = Method::from_bytes(line.method).map_err(|_invalid| bad("the method is not a token"))?;
    parts.uri = Uri::from_maybe_shared(head.slice_ref(line.target))
        .map_err(|_invalid| bad("the request target is neither a path nor an absolute URI"))?;
    parts.version = if line.is_http_11 { Version::HTTP_11 } else { Version::HTTP_10 };
    parts.headers = headers;
    Ok((parts, framing))
}

/// Room for the fields of a head and those that a proxy adds to them.
fn room_for(head: &[u8], fields_max: usize) -> HeaderMap {
    // Each field ends with a line feed, as do the first line and the empty one.
    let fields = memchr_iter(b'\n', head).count().saturating_sub(2);
    HeaderMap::with_capacity(fields.min(fields_max) + FIELDS_ADDED)
}

fn put(headers: &mut HeaderMap, head: &Bytes, name: &[u8], value: &[u8]) -> Option<()> {
    let name = HeaderName::from_bytes(name).ok()?;
    let value = HeaderValue::from_maybe_shared(head.slice_ref(value)).ok()?;
    headers.try_append(name, value).ok().map(drop)
}

fn scan_request<'a>(
    head: &'a [u8],
    fields_max: usize,
    mut each: impl FnMut(&'a [u8], &'a [u8]) -> Result<(), Refusal>,
) -> Result<(RequestLine<'a>, Framing), Refusal> {
    let mut lines = lines(head);
    let request = RequestLine::parse(lines.next().unwrap_or_default())?;
    let mut seen = Seen::default();
    for (count, line) in lines.enumerate() {
        if count >= fields_max {
            return Err(Refusal::new(
                Reason::HeadTooLarge,
                format!("the request has more than {fields_max} header fields"),
            ));
        }
        let (name, value) = seen.field(line)?;
        each(name, value)?;
    }
    let framing = seen.framing(&request)?;
    Ok((request, framing))
}

/// The lines of a whole head without their ends.
fn lines(head: &[u8]) -> impl Iterator<Item = &[u8]> {
    let text = head.strip_suffix(b"\r\n\r\n").unwrap_or(head);
    text.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line))
}

struct RequestLine<'a> {
    method: &'a [u8],
    target: &'a [u8],
    is_http_11: bool,
}

impl<'a> RequestLine<'a> {
    fn parse(line: &'a [u8]) -> Result<Self, Refusal> {
        let mut parts = line.split(|byte| *byte == b' ');
        let (Some(method), Some(target), Some(version), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(bad("the request line is not METHOD SP TARGET SP VERSION"));
        };
        if !is_token(method) {
            return Err(bad("the method is not a token"));
        }
        let is_http_11 = match version {
            b"HTTP/1.1" => true,
            b"HTTP/1.0" => false,
            [b'H', b'T', b'T', b'P', b'/', b'2' | b'3', ..] => return Err(http2()),
            _ => return Err(bad("the version is neither HTTP/1.1 nor HTTP/1.0")),
        };
        check_target(method, target)?;
        Ok(Self { method, target, is_http_11 })
    }
}

/// Checks that a target has the form that goes with its method (RFC 9112 section 3.2).
///
/// Those behind this reader are lenient: they cut a target at its `#`, and take `GET host` for a request of that host.
fn check_target(method: &[u8], target: &[u8]) -> Result<(), Refusal> {
    if target.is_empty() || !target.iter().all(u8::is_ascii_graphic) {
        return Err(bad("the request target has characters that must be percent-encoded"));
    }
    if target.contains(&b'#') {
        return Err(bad("the request target has a fragment"));
    }
    let is_fitting = match (method, target) {
        (b"CONNECT", target) => !target.contains(&b'/') && !target.contains(&b'?'),
        (b"OPTIONS", b"*") => true,
        (_, [b'/', ..]) => true,
        (_, target) => is_absolute(target),
    };
    is_fitting.then_some(()).ok_or_else(|| bad("the request target is neither a path nor an absolute URI"))
}

/// Whether a target begins with a scheme and an authority.
fn is_absolute(target: &[u8]) -> bool {
    let Some(colon) = target.iter().position(|byte| *byte == b':') else { return false };
    let scheme = target.get(..colon).unwrap_or_default();
    scheme.first().is_some_and(u8::is_ascii_alphabetic)
        && scheme.iter().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(byte))
        && target.get(colon..).is_some_and(|rest| rest.starts_with(b"://"))
}

/// What an answer's head says of its body and of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AnswerEnd {
    /// The body's end; `None` where it ends with the connection, unless the answer has none by its status or method.
    pub(super) framing: Option<Framing>,
    /// Whether another request may follow on the connection.
    pub(super) is_kept: bool,
}

/// Reads a whole head of an answer strictly, of at most `fields_max` fields.
///
/// # Errors
/// What is wrong with it.
pub(super) fn read_answer(head: &Bytes, fields_max: usize) -> Result<(response::Parts, AnswerEnd), String> {
    let mut lines = lines(head);
    let (status, is_http_11) = status_line(lines.next().unwrap_or_default()).ok_or("it has no status line")?;
    let mut seen = Seen::default();
    let mut headers = room_for(head, fields_max);
    for (count, line) in lines.enumerate() {
        if count >= fields_max {
            return Err(format!("it has more than {fields_max} header fields"));
        }
        let (name, value) = seen.field(line).map_err(|refusal| refusal.detail().to_owned())?;
        put(&mut headers, head, name, value).ok_or("a header field cannot be read")?;
    }
    if seen.is_chunked && seen.length.is_some() {
        return Err("`content-length` and `transfer-encoding` exclude each other".into());
    }
    if seen.is_chunked && !is_http_11 {
        return Err("an HTTP/1.0 answer cannot be chunked".into());
    }
    let has_body = seen.is_chunked || seen.length.is_some_and(|length| length > 0);
    if has_body && matches!(status, 100..=199 | 204) {
        return Err(format!("an answer {status} has no body"));
    }
    let framing = match seen.length {
        _ if seen.is_chunked => Some(Framing::Chunked),
        Some(0) => Some(Framing::None),
        Some(length) => Some(Framing::Length(length)),
        None => None,
    };
    let is_kept = if is_http_11 { seen.stays != Stays::No } else { seen.stays == Stays::Yes };
    let (mut parts, ()) = Response::new(()).into_parts();
    parts.status = StatusCode::from_u16(status).map_err(|error| error.to_string())?;
    parts.headers = headers;
    Ok((parts, AnswerEnd { framing, is_kept }))
}

/// Status and whether the version is HTTP/1.1; a server may leave out the reason, and the space before it.
fn status_line(line: &[u8]) -> Option<(u16, bool)> {
    let (version, rest) = line.split_at_checked(9)?;
    let is_http_11 = match version {
        b"HTTP/1.1 " => true,
        b"HTTP/1.0 " => false,
        _ => return None,
    };
    let (digits, reason) = rest.split_at_checked(3)?;
    let is_reason = matches!(reason, [] | [b' ', ..]) && reason.iter().copied().all(is_text);
    if !digits.iter().all(u8::is_ascii_digit) || !is_reason {
        return None;
    }
    let status = str::from_utf8(digits).ok()?.parse().ok()?;
    (status >= 100).then_some((status, is_http_11))
}

#[derive(Default)]
struct Seen {
    hosts: usize,
    length: Option<u64>,
    /// The length is written with zeros first: C would take `010` for 8.
    is_padded: bool,
    is_chunked: bool,
    stays: Stays,
}

/// What `Connection` says of the connection's time after the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Stays {
    #[default]
    Unsaid,
    Yes,
    No,
}

impl Seen {
    /// The name and value of a line, without the blanks around the value.
    fn field<'a>(&mut self, line: &'a [u8]) -> Result<(&'a [u8], &'a [u8]), Refusal> {
        if matches!(line.first(), Some(b' ' | b'\t')) {
            return Err(bad("a header line is folded over two lines"));
        }
        let Some(colon) = line.iter().position(|byte| *byte == b':') else {
            return Err(bad("a header line has no colon"));
        };
        let (name, value) = (line.get(..colon).unwrap_or_default(), line.get(colon + 1..).unwrap_or_default());
        if !is_token(name) {
            return Err(bad("a header name is not a token; no space may stand before the colon"));
        }
        // Without an end at the first that is none, so that many are looked at with one instruction.
        if !value.iter().fold(true, |are_text, byte| are_text & is_text(*byte)) {
            return Err(bad("a header value has control characters"));
        }
        let value = value.trim_ascii();
        if name.eq_ignore_ascii_case(b"host") {
            self.hosts += 1;
        } else if name.eq_ignore_ascii_case(b"content-length") {
            self.content_length(value)?;
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if self.is_chunked || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(bad("`transfer-encoding` is not just `chunked`"));
            }
            self.is_chunked = true;
        } else if name.eq_ignore_ascii_case(b"connection") {
            let has =
                |word: &[u8]| value.split(|byte| *byte == b',').any(|one| one.trim_ascii().eq_ignore_ascii_case(word));
            if has(b"close") {
                self.stays = Stays::No;
            } else if has(b"keep-alive") && self.stays == Stays::Unsaid {
                self.stays = Stays::Yes;
            }
        }
        Ok((name, value))
    }

    fn content_length(&mut self, value: &[u8]) -> Result<(), Refusal> {
        if self.length.is_some() {
            return Err(bad("`content-length` is given more than once"));
        }
        self.is_padded = value.len() > 1 && value.first() == Some(&b'0');
        let digits = (!value.is_empty() && value.iter().all(u8::is_ascii_digit)).then_some(value);
        let length = digits.and_then(|digits| str::from_utf8(digits).ok()?.parse().ok());
        self.length = Some(length.ok_or_else(|| bad("`content-length` is not a number"))?);
        Ok(())
    }

    fn framing(&self, request: &RequestLine<'_>) -> Result<Framing, Refusal> {
        if self.hosts > 1 {
            return Err(bad("`host` is given more than once"));
        }
        if self.hosts == 0 && request.is_http_11 {
            return Err(bad("an HTTP/1.1 request needs a `host` header"));
        }
        if self.is_padded {
            return Err(bad("`content-length` begins with a zero"));
        }
        if self.is_chunked && self.length.is_some() {
            return Err(bad("`content-length` and `transfer-encoding` exclude each other"));
        }
        if self.is_chunked && !request.is_http_11 {
            return Err(bad("an HTTP/1.0 request cannot be chunked"));
        }
        let framing = match self.length {
            _ if self.is_chunked => Framing::Chunked,
            None | Some(0) => Framing::None,
            Some(length) => Framing::Length(length),
        };
        if request.method == b"CONNECT" && framing != Framing::None {
            return Err(bad("a CONNECT request has no body"));
        }
        Ok(framing)
    }
}

/// The refusal of HTTP/2 where it cannot begin, and of later versions.
pub(super) fn http2() -> Refusal {
    Refusal::new(
        Reason::Http2NotSupported,
        "HTTP/2 is spoken from the first byte of a connection on, HTTP/3 not at all",
    )
    .hint("use HTTP/2 with prior knowledge, for instance `curl --http2-prior-knowledge`, or HTTP/1.1")
}

fn bad(what: &str) -> Refusal {
    Refusal::new(Reason::BadRequest, what)
}

fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|byte| is_token_byte(*byte))
}

fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii() && TOKEN_BYTES >> byte & 1 == 1
}

/// A bit for each byte that may stand in a token (RFC 9110 section 5.6.2).
const TOKEN_BYTES: u128 = {
    let mut bits = 0;
    let mut rest: &[u8] = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    while let [byte, behind @ ..] = rest {
        bits |= 1_u128 << *byte;
        rest = behind;
    }
    bits
};

/// Whether a byte may stand in a value: anything but the control characters other than tab.
const fn is_text(byte: u8) -> bool {
    !byte.is_ascii_control() || byte == b'\t'
}

/// Follows a chunked body to its end.
#[derive(Debug, Clone)]
pub(super) struct Chunks {
    at: At,
    line_bytes: usize,
    trailers: usize,
    trailer_bytes_max: usize,
    /// The lines of trailers so far, from the line feed before the first on.
    trailer_lines: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// In the digits of a size; whether one was seen, and the size so far.
    Size(bool, u64),
    /// In the blanks behind the digits of a size: nothing but an extension may follow.
    Blank(u64),
    /// In the extensions of a size line.
    Extension(u64),
    /// Before the line feed of a size line.
    SizeEnd(u64),
    /// In the bytes of a chunk.
    Data(u64),
    /// Before the CR after a chunk.
    DataCr,
    /// Before the LF after a chunk.
    DataLf,
    /// At the start of a trailer line, or of the empty line that ends the body.
    LineStart,
    /// Inside the name of a trailer.
    TrailerName,
    /// Inside the value of a trailer.
    Trailer,
    /// Before the line feed of a trailer line.
    TrailerEnd,
    /// Before the very last line feed.
    LastLf,
    /// After it.
    End,
}

/// What [`Chunks::take`] found.
#[derive(Debug)]
pub(super) enum Taken {
    /// Bytes of the body.
    Data(Bytes),
    /// More has to arrive first.
    Nothing,
    /// The body's end, and its trailers.
    End(Option<HeaderMap>),
}

/// How far a piece of a chunked body went.
#[cfg(test)]
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Followed {
    /// All of the piece belongs to the body, which goes on.
    All,
    /// The body ends after so many bytes of the piece.
    EndsAfter(usize),
}

impl Chunks {
    /// At the start of a body whose trailers may have `trailer_bytes_max` bytes in all.
    pub(super) const fn new(trailer_bytes_max: usize) -> Self {
        Self { at: At::Size(false, 0), line_bytes: 0, trailers: 0, trailer_bytes_max, trailer_lines: Vec::new() }
    }

    /// Follows the next piece without taking it.
    ///
    /// # Errors
    /// The piece breaks the chunked coding.
    #[cfg(test)]
    pub(super) fn follow(&mut self, piece: &[u8]) -> Result<Followed, Refusal> {
        let mut index = 0;
        while let Some(&byte) = piece.get(index) {
            if let At::Data(left) = self.at {
                let rest = piece.len() - index;
                let here = usize::try_from(left).map_or(rest, |left| left.min(rest));
                index += here;
                let left = left - here as u64;
                self.at = if left == 0 { At::DataCr } else { At::Data(left) };
                continue;
            }
            index += 1;
            self.at = self.next(byte).ok_or_else(|| bad("the chunked body is malformed"))?;
            if self.at == At::End {
                return Ok(Followed::EndsAfter(index));
            }
        }
        Ok(Followed::All)
    }

    /// Takes the next piece of the body out of `bytes`, with what frames it.
    ///
    /// # Errors
    /// The bytes break the chunked coding.
    pub(super) fn take(&mut self, bytes: &mut BytesMut) -> Result<Taken, Refusal> {
        loop {
            if let At::Data(left) = self.at {
                if bytes.is_empty() {
                    return Ok(Taken::Nothing);
                }
                let here = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
                let left = left - here as u64;
                self.at = if left == 0 { At::DataCr } else { At::Data(left) };
                return Ok(Taken::Data(bytes.split_to(here).freeze()));
            }
            let Some(&byte) = bytes.first() else { return Ok(Taken::Nothing) };
            bytes.advance(1);
            self.at = self.next(byte).ok_or_else(|| bad("the chunked body is malformed"))?;
            if matches!(self.at, At::LineStart | At::TrailerName | At::Trailer | At::TrailerEnd) {
                self.trailer_lines.push(byte);
            }
            if self.at == At::End {
                return Ok(Taken::End(self.trailers()?));
            }
        }
    }

    /// The trailers that were read.
    fn trailers(&mut self) -> Result<Option<HeaderMap>, Refusal> {
        let lines_read = Bytes::from(std::mem::take(&mut self.trailer_lines));
        // The first byte is the line feed behind the last size.
        let text = lines_read.get(1..).unwrap_or_default();
        if text.is_empty() {
            return Ok(None);
        }
        let mut headers = HeaderMap::new();
        for line in lines(text.strip_suffix(b"\r\n").unwrap_or(text)) {
            let (name, value) = Seen::default().field(line)?;
            put(&mut headers, &lines_read, name, value).ok_or_else(|| bad("a trailer cannot be read"))?;
        }
        Ok(Some(headers))
    }

    fn next(&mut self, byte: u8) -> Option<At> {
        Some(match (self.at, byte) {
            (At::Size(_, size), _) if byte.is_ascii_hexdigit() => {
                self.count_line()?;
                let digit = u64::from(char::from(byte).to_digit(16)?);
                At::Size(true, size.checked_mul(16)?.checked_add(digit)?)
            }
            (At::Size(true, size) | At::Blank(size) | At::Extension(size), b'\r') => At::SizeEnd(size),
            (At::Size(true, size) | At::Blank(size), b' ' | b'\t') => {
                self.count_line()?;
                At::Blank(size)
            }
            (At::Size(true, size) | At::Blank(size), b';') => At::Extension(size),
            (At::Extension(size), byte) if is_text(byte) => {
                self.count_line()?;
                At::Extension(size)
            }
            (At::SizeEnd(size), b'\n') => {
                self.line_bytes = 0;
                if size == 0 { At::LineStart } else { At::Data(size) }
            }
            (At::DataCr, b'\r') => At::DataLf,
            (At::DataLf, b'\n') => At::Size(false, 0),
            (At::LineStart, b'\r') => At::LastLf,
            (At::LineStart, byte) if is_token_byte(byte) => {
                self.trailers += 1;
                if self.trailers > FIELDS_MAX {
                    return None;
                }
                self.count_trailer()?;
                At::TrailerName
            }
            (At::TrailerName, byte) if is_token_byte(byte) => {
                self.count_trailer()?;
                At::TrailerName
            }
            (At::TrailerName, b':') => At::Trailer,
            (At::Trailer, byte) if is_text(byte) => {
                self.count_trailer()?;
                At::Trailer
            }
            (At::Trailer, b'\r') => At::TrailerEnd,
            (At::TrailerEnd, b'\n') => At::LineStart,
            (At::LastLf, b'\n') => At::End,
            _ => return None,
        })
    }

    fn count_line(&mut self) -> Option<()> {
        self.line_bytes += 1;
        (self.line_bytes <= CHUNK_LINE_BYTES_MAX).then_some(())
    }

    fn count_trailer(&mut self) -> Option<()> {
        self.line_bytes += 1;
        (self.line_bytes <= self.trailer_bytes_max).then_some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(head: &str) -> Result<Framing, Reason> {
        check_head(head.as_bytes()).map_err(|refusal| refusal.reason())
    }

    #[test]
    fn well_formed_heads_say_what_follows() {
        assert_eq!(check("GET / HTTP/1.1\r\nHost: a\r\n\r\n"), Ok(Framing::None));
        assert_eq!(check("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n"), Ok(Framing::Length(5)));
        assert_eq!(check("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n"), Ok(Framing::Chunked));
        assert_eq!(check("GET / HTTP/1.0\r\n\r\n"), Ok(Framing::None));
        assert_eq!(check("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n"), Ok(Framing::None));
        assert_eq!(check("GET http://a/b?c HTTP/1.1\r\nHost: a\r\n\r\n"), Ok(Framing::None));
    }

    #[test]
    fn heads_of_answers_are_read_as_strictly() {
        let check = |head: &str| {
            read_answer(&Bytes::from(format!("{head}\r\n\r\n")), FIELDS_MAX).map(|(parts, _)| parts.status.as_u16())
        };
        for (head, status) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 5", 200),
            ("HTTP/1.0 404 Not Found", 404),
            ("HTTP/1.1 200", 200),
            ("HTTP/1.1 200 \r\nX: \u{e9}", 200),
            ("HTTP/1.1 304 Not Modified\r\nContent-Length: 5", 304),
        ] {
            assert_eq!(check(head), Ok(status), "{head:?}");
        }
        for head in [
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5",
            "HTTP/1.1 200 OK\r\nContent-Length: 5, 5",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked",
            "HTTP/1.1 204 No Content\r\nContent-Length: 5",
            "HTTP/1.1 200 OK\r\nX : y",
            "HTTP/1.1 200 OK\r\nX: y\r\n z",
            "HTTP/1.1 2000 OK",
            "HTTP/1.1 99 OK",
            "HTTP/1.1  200 OK",
            "HTTP/2.0 200 OK",
            "200 OK",
            "",
        ] {
            assert!(check(head).is_err(), "{head:?}");
        }
    }

    #[test]
    fn heads_that_two_readers_could_read_differently_are_refused() {
        for head in [
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 010\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nnothing\r\n\r\n",
            "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.2\r\nHost: a\r\n\r\n",
            "CONNECT a:1 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n",
            "CONNECT http://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET a HTTP/1.1\r\nHost: b\r\n\r\n",
            "GET * HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n",
        ] {
            assert_eq!(check(head), Err(Reason::BadRequest), "{head:?}");
        }
    }

    #[test]
    fn http2_and_floods_of_headers_are_refused_as_such() {
        assert_eq!(check("PRI * HTTP/2.0\r\n\r\n"), Err(Reason::Http2NotSupported));
        let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: 1\r\n".repeat(100));
        assert_eq!(check(&many), Err(Reason::HeadTooLarge));
    }

    #[test]
    fn the_end_of_a_head_is_found_however_it_is_cut() {
        let bytes = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nrest";
        for cut in 0..=bytes.len() {
            let mut scanned = 0;
            let first = head_end(&bytes[..cut], &mut scanned).unwrap();
            let found = first.or_else(|| head_end(bytes, &mut scanned).unwrap());
            assert_eq!(found, Some(27), "cut at {cut}");
        }
        for lenient in ["GET / HTTP/1.1\nHost: a\n\n", "GET / HTTP/1.1\r\rHost: a\r\n\r\n"] {
            assert!(head_end(lenient.as_bytes(), &mut 0).is_err(), "{lenient:?}");
        }
    }

    #[test]
    fn the_end_of_a_chunked_body_is_found_however_it_is_cut() {
        let body = b"5;name=value\r\nhello\r\nA \r\n0123456789\r\n0\r\nX-Sum: 1\r\n\r\nGET /next";
        let end = body.len() - b"GET /next".len();
        for cut in 0..body.len() {
            let mut chunks = Chunks::new(100);
            let found = match chunks.follow(&body[..cut]).unwrap() {
                Followed::EndsAfter(length) => length,
                Followed::All => match chunks.follow(&body[cut..]).unwrap() {
                    Followed::EndsAfter(length) => cut + length,
                    Followed::All => panic!("no end found, cut at {cut}"),
                },
            };
            assert_eq!(found, end, "cut at {cut}");
        }
    }

    #[test]
    fn malformed_chunks_are_refused() {
        for body in [
            "\r\n",
            "x\r\n",
            "-1\r\n",
            "5\nhello\r\n",
            "5\r\nhelloo\r\n",
            "11111111111111111\r\n",
            "0\r\nX: 1\n\r\n",
            "1;\n",
            "5 5\r\nhello\r\n",
            "5;\0\r\nhello\r\n",
            "0\r\nX : 1\r\n\r\n",
            "0\r\nX\r\n\r\n",
            "0\r\nX: 1\r\n 2\r\n\r\n",
            "0\r\nX: \0\r\n\r\n",
        ] {
            assert!(Chunks::new(100).follow(body.as_bytes()).is_err(), "{body:?}");
        }
        let long = format!("1;{}", "e".repeat(CHUNK_LINE_BYTES_MAX + 1));
        assert!(Chunks::new(100).follow(long.as_bytes()).is_err());
        let trailers = format!("0\r\nX: {}", "e".repeat(101));
        assert!(Chunks::new(100).follow(trailers.as_bytes()).is_err());
        let many = format!("0\r\n{}\r\n", "X: 1\r\n".repeat(101));
        assert!(Chunks::new(10_000).follow(many.as_bytes()).is_err());
    }
}
