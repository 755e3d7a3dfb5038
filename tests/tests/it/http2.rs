//! HTTP/2 by the letter of RFC 9113: each case is a connection of single frames to a real agent, with what the RFC says has
//! to come of it. No independent suite was found in Debian or on `PyPI`, so the cases are driven by hand.

use std::fmt;

use tests::frames::{ACK, END_HEADERS, END_STREAM, Frame, Frames, PADDED, PREFACE, PRIORITY, fields, frame, kind};
use tests::{Fleet, Node, Recorded, Recorder, Script};

const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE_ERROR: u32 = 6;
const REFUSED_STREAM: u32 = 7;
const COMPRESSION_ERROR: u32 = 9;
// The frame reader of h2 ends the connection with PROTOCOL_ERROR where the RFC has a code of its own for the fault.
const WRONG_SIZE: &[u32] = &[FRAME_SIZE_ERROR, PROTOCOL_ERROR];
const WRONG_CODING: &[u32] = &[COMPRESSION_ERROR, PROTOCOL_ERROR];
const WRONG_WINDOW: &[u32] = &[FLOW_CONTROL_ERROR, PROTOCOL_ERROR];

/// What has to come of the frames; it always concerns stream 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    /// An answer of this status.
    Answer(u16),
    /// The request is malformed (section 8.1.1): its stream is reset, or it is answered 400, or (section 5.4 allows it) the
    /// connection ends: h2 takes a name that cannot be one for a fault of the coding.
    Malformed,
    /// The stream is reset with one of these codes, and others go on.
    Stream(&'static [u32]),
    /// The connection ends with one of these codes.
    Connection(&'static [u32]),
    /// Either of the last two.
    Either(&'static [u32]),
    /// The connection ends, also without a word.
    End,
    /// The RFC calls the request malformed; h2 drops the field and does not tell, so it is answered as if it were not there.
    Dropped,
}

struct Case {
    /// The section of RFC 9113 that says so.
    section: &'static str,
    name: String,
    bytes: Vec<u8>,
    expect: Expect,
    /// Whether the case begins the connection itself.
    is_bare: bool,
    /// The stream on which a request after the case has to be answered, unless the connection ends.
    next: u32,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "section {}: {}", self.section, self.name)
    }
}

/// What came of the frames.
#[derive(Debug, PartialEq, Eq)]
enum Came {
    Answer(u16),
    Reset(u32),
    /// GOAWAY with this code, or the end without a word.
    Gone(Option<u32>),
    Nothing,
}

const METHOD: (&str, &str) = (":method", "GET");
const POST: (&str, &str) = (":method", "POST");
const SCHEME: (&str, &str) = (":scheme", "http");
const PATH: (&str, &str) = (":path", "/case");
const AUTHORITY: (&str, &str) = (":authority", "raw.mesh");
const GET: &[(&str, &str)] = &[METHOD, SCHEME, PATH, AUTHORITY];

fn headers(stream: u32, flags: u8, list: &[(&str, &str)]) -> Vec<u8> {
    frame(kind::HEADERS, flags | END_HEADERS, stream, &fields(list))
}

/// A whole request with these fields behind the four of its target.
fn get(more: &[(&str, &str)]) -> Vec<u8> {
    headers(1, END_STREAM, &[GET, more].concat())
}

/// A request whose body follows.
fn post(more: &[(&str, &str)]) -> Vec<u8> {
    headers(1, 0, &[&[POST, SCHEME, PATH, AUTHORITY][..], more].concat())
}

fn data(stream: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    frame(kind::DATA, flags, stream, payload)
}

fn word(kind: u8, stream: u32, value: u32) -> Vec<u8> {
    frame(kind, 0, stream, &value.to_be_bytes())
}

fn setting(id: u16, value: u32) -> Vec<u8> {
    frame(kind::SETTINGS, 0, 0, &[&id.to_be_bytes()[..], &value.to_be_bytes()].concat())
}

struct Cases(Vec<Case>);

impl Cases {
    fn add(&mut self, section: &'static str, name: impl Into<String>, frames: &[Vec<u8>], expect: Expect) -> &mut Case {
        let case = Case { section, name: name.into(), bytes: frames.concat(), expect, is_bare: false, next: 3 };
        self.0.push(case);
        let last = self.0.len() - 1;
        &mut self.0[last]
    }
}

fn cases() -> Vec<Case> {
    let mut cases = Cases(Vec::new());
    beginnings_and_frames(&mut cases);
    header_blocks(&mut cases);
    states(&mut cases);
    data_and_headers(&mut cases);
    control_frames(&mut cases);
    windows(&mut cases);
    continuations(&mut cases);
    messages(&mut cases);
    field_names_and_values(&mut cases);
    pseudo_fields(&mut cases);
    cases.0
}

fn beginnings_and_frames(cases: &mut Cases) {
    use Expect::{Answer, Connection, Either, End};
    let preface = |rest: &[u8]| [PREFACE, rest].concat();
    cases.add("3.4", "a preface with another end", &[b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n".to_vec()], End).is_bare = true;
    cases.add("3.4", "SETTINGS with settings nobody knows", &[setting(0xff, 1), get(&[])], Answer(200));
    let empty = frame(kind::SETTINGS, 0, 0, &[]);
    cases.add("3.4", "a request right behind the preface", &[preface(&empty), get(&[])], Answer(200)).is_bare = true;
    cases.add("4.1", "a frame of an unknown type", &[frame(0xfa, 0xff, 0, b"what"), get(&[])], Answer(200));
    cases.add("4.1", "a frame of an unknown type on a stream", &[frame(0xfa, 0, 1, b"x"), get(&[])], Answer(200));
    cases.add("4.1", "flags that a frame does not have", &[frame(kind::PING, 0xfe, 0, &[0; 8]), get(&[])], Answer(200));
    let reserved = headers(0x8000_0001, END_STREAM, GET);
    cases.add("4.1", "the reserved bit is set", &[reserved], Answer(200));
    let large = vec![0; 16 * 1024 + 1];
    cases.add("4.2", "DATA beyond the size", &[post(&[]), data(1, 0, &large)], Either(WRONG_SIZE));
    let block = frame(kind::HEADERS, END_HEADERS | END_STREAM, 1, &large);
    cases.add("4.2", "HEADERS beyond the size", &[block], Connection(WRONG_SIZE));
    cases.add("4.2", "SETTINGS beyond the size", &[frame(kind::SETTINGS, 0, 0, &large)], Connection(WRONG_SIZE));
    cases.add(
        "5.5",
        "an unknown frame inside a header block",
        &[
            frame(kind::HEADERS, END_STREAM, 1, &fields(GET)),
            frame(0xfa, 0, 1, b"x"),
            frame(kind::CONTINUATION, END_HEADERS, 1, &fields(&[("x", "y")])),
        ],
        Connection(&[PROTOCOL_ERROR]),
    );
}

fn header_blocks(cases: &mut Cases) {
    use Expect::{Answer, Connection};
    let broken = Connection(WRONG_CODING);
    let mut block = |name: &str, bytes: &[u8], expect| {
        let whole = [fields(GET), bytes.to_vec()].concat();
        cases.add("4.3", name, &[frame(kind::HEADERS, END_HEADERS | END_STREAM, 1, &whole)], expect);
    };
    block("index 0", &[0x80], broken);
    block("an index beyond the tables", &[0xff, 0x7f], broken);
    block("an index that never ends", &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], broken);
    block("a literal that is cut", &[0x00, 5, b'x'], broken);
    block("a name that is cut", &[0x00, 0x7f], broken);
    block("Huffman padding with zeros", &[0x00, 1, b'x', 0x81, 0x00], broken);
    block("a table size change behind a field", &[0x20], broken);
    block("never indexed", &[0x10, 1, b'x', 1, b'y'], Answer(200));
    let grown = [&[0x3f, 0xe1, 0xff, 0x03][..], &fields(GET)].concat();
    let grown = frame(kind::HEADERS, END_HEADERS | END_STREAM, 1, &grown);
    cases.add("4.3.1", "a table larger than allowed", &[grown], broken);
    let within = |inner: Vec<u8>| {
        [frame(kind::HEADERS, END_STREAM, 1, &fields(GET)), inner, frame(kind::CONTINUATION, END_HEADERS, 1, &[])]
    };
    for (name, inner) in [
        ("PRIORITY", frame(kind::PRIORITY, 0, 1, &[0, 0, 0, 0, 1])),
        ("DATA", data(1, 0, b"x")),
        ("HEADERS of another stream", headers(3, END_STREAM, GET)),
        ("PING", frame(kind::PING, 0, 0, &[0; 8])),
        ("SETTINGS", frame(kind::SETTINGS, 0, 0, &[])),
    ] {
        cases.add("4.3", format!("{name} inside a header block"), &within(inner), Connection(&[PROTOCOL_ERROR]));
    }
}

fn states(cases: &mut Cases) {
    use Expect::{Answer, Connection, Either};
    const CLOSED: Expect = Either(&[STREAM_CLOSED, PROTOCOL_ERROR]);
    let wrong = Connection(&[PROTOCOL_ERROR]);
    let reset = word(kind::RST_STREAM, 1, 8);
    cases.add("5.1", "DATA on an idle stream", &[data(1, END_STREAM, b"x")], wrong);
    cases.add("5.1", "RST_STREAM on an idle stream", std::slice::from_ref(&reset), wrong);
    cases.add("5.1", "WINDOW_UPDATE on an idle stream", &[word(kind::WINDOW_UPDATE, 1, 1)], wrong);
    cases.add("5.1", "CONTINUATION on an idle stream", &[frame(kind::CONTINUATION, 4, 1, &[])], wrong);
    cases.add(
        "5.1",
        "PRIORITY on an idle stream",
        &[frame(kind::PRIORITY, 0, 5, &[0, 0, 0, 0, 1]), get(&[])],
        Answer(200),
    );
    let slow = headers(1, END_STREAM, &[METHOD, SCHEME, (":path", "/slow"), AUTHORITY]);
    cases.add("5.1", "DATA on a half-closed stream", &[slow.clone(), data(1, END_STREAM, b"x")], CLOSED);
    cases.add("5.1", "HEADERS on a half-closed stream", &[slow, headers(1, END_STREAM, GET)], CLOSED);
    let closed = [post(&[]), reset];
    cases.add(
        "5.1",
        "HEADERS on a stream that was reset",
        &[&closed[..], &[headers(1, END_STREAM, GET)]].concat(),
        CLOSED,
    );
    cases.add("5.1.1", "a request on stream 0", &[headers(0, END_STREAM, GET)], wrong);
    cases.add("5.1.1", "a request on an even stream", &[headers(2, END_STREAM, GET)], wrong);
    let back = [headers(5, END_STREAM, GET), headers(3, END_STREAM, GET)];
    cases.add("5.1.1", "a stream lower than the last", &back, Connection(&[PROTOCOL_ERROR, STREAM_CLOSED]));
    cases.add("8.4", "a promise of a client", &[frame(kind::PUSH_PROMISE, 4, 1, &[0, 0, 0, 2])], wrong);
}

fn data_and_headers(cases: &mut Cases) {
    use Expect::{Answer, Connection, Either};
    let wrong = Connection(&[PROTOCOL_ERROR]);
    cases.add("6.1", "DATA on stream 0", &[data(0, 0, b"x")], wrong);
    cases.add(
        "6.1",
        "DATA with padding",
        &[post(&[]), data(1, PADDED | END_STREAM, b"\x05hello\0\0\0\0\0")],
        Answer(200),
    );
    cases.add(
        "6.1",
        "DATA that is all padding",
        &[post(&[]), data(1, PADDED | END_STREAM, b"\x03\0\0\0")],
        Answer(200),
    );
    cases.add("6.1", "more padding than payload", &[post(&[]), data(1, PADDED | END_STREAM, b"\x05x")], wrong);
    cases.add("6.1", "padding without a length", &[post(&[]), data(1, PADDED | END_STREAM, b"")], Connection(&[1, 6]));
    let all = END_HEADERS | END_STREAM;
    let padded = [&[3][..], &fields(GET), &[0; 3]].concat();
    cases.add("6.2", "HEADERS with padding", &[frame(kind::HEADERS, all | PADDED, 1, &padded)], Answer(200));
    let padded = [&[0xff][..], &fields(GET)].concat();
    cases.add(
        "6.2",
        "HEADERS with more padding than payload",
        &[frame(kind::HEADERS, all | PADDED, 1, &padded)],
        wrong,
    );
    let first = [&[0, 0, 0, 5, 200][..], &fields(GET)].concat();
    cases.add("6.2", "HEADERS with a priority", &[frame(kind::HEADERS, all | PRIORITY, 1, &first)], Answer(200));
    let own = [&[0, 0, 0, 1, 200][..], &fields(GET)].concat();
    // RFC 7540 calls it an error of the stream, RFC 9113 says nothing any more.
    cases.add("5.3", "a stream that depends on itself", &[frame(kind::HEADERS, all | PRIORITY, 1, &own)], Either(&[1]));
    cases.add("6.3", "PRIORITY on stream 0", &[frame(kind::PRIORITY, 0, 0, &[0, 0, 0, 1, 1])], wrong);
    let short = frame(kind::PRIORITY, 0, 1, &[0, 0, 0, 3]);
    cases.add("6.3", "PRIORITY of four bytes", &[post(&[]), short], Either(WRONG_SIZE));
    cases.add("6.4", "RST_STREAM on stream 0", &[word(kind::RST_STREAM, 0, 8)], wrong);
    let short = frame(kind::RST_STREAM, 0, 1, &[0, 0, 8]);
    cases.add("6.4", "RST_STREAM of three bytes", &[post(&[]), short], Connection(WRONG_SIZE));
}

fn control_frames(cases: &mut Cases) {
    use Expect::{Answer, Connection};
    let (wrong, size) = (Connection(&[PROTOCOL_ERROR]), Connection(WRONG_SIZE));
    cases.add("6.5", "an acknowledgement that carries settings", &[frame(kind::SETTINGS, ACK, 0, &[0; 6])], size);
    cases.add("6.5", "SETTINGS on a stream", &[frame(kind::SETTINGS, 0, 1, &[])], wrong);
    cases.add("6.5", "SETTINGS of five bytes", &[frame(kind::SETTINGS, 0, 0, &[0; 5])], size);
    cases.add("6.5.2", "ENABLE_PUSH of 2", &[setting(2, 2)], wrong);
    cases.add("6.5.2", "a window of 2^31", &[setting(4, 1 << 31)], Connection(WRONG_WINDOW));
    cases.add("6.5.2", "frames of 16383 bytes", &[setting(5, 16_383)], wrong);
    cases.add("6.5.2", "frames of 2^24 bytes", &[setting(5, 1 << 24)], wrong);
    cases.add("6.5.2", "frames of 2^24 - 1 bytes", &[setting(5, (1 << 24) - 1), get(&[])], Answer(200));
    cases.add("6.5.2", "a header table of no bytes", &[setting(1, 0), get(&[])], Answer(200));
    cases.add(
        "6.5.3",
        "an acknowledgement nobody waits for",
        &[frame(kind::SETTINGS, ACK, 0, &[]), get(&[])],
        Answer(200),
    );
    cases.add("6.7", "PING on a stream", &[frame(kind::PING, 0, 1, &[0; 8])], wrong);
    cases.add("6.7", "PING of six bytes", &[frame(kind::PING, 0, 0, &[0; 6])], size);
    cases.add("6.7", "an answer to no PING", &[frame(kind::PING, ACK, 0, &[7; 8]), get(&[])], Answer(200));
    cases.add("6.8", "GOAWAY on a stream", &[frame(kind::GOAWAY, 0, 1, &[0; 8])], wrong);
    cases.add("6.8", "GOAWAY behind a request", &[get(&[]), frame(kind::GOAWAY, 0, 0, &[0; 8])], Answer(200)).next = 0;
}

fn windows(cases: &mut Cases) {
    use Expect::{Connection, Either, Stream};
    const MOST: u32 = 0x7fff_ffff;
    let flow = &[FLOW_CONTROL_ERROR];
    let slow = || headers(1, END_STREAM, &[METHOD, SCHEME, (":path", "/slow"), AUTHORITY]);
    let update = |stream, by| word(kind::WINDOW_UPDATE, stream, by);
    cases.add("6.9", "WINDOW_UPDATE of 0 for all", &[update(0, 0)], Connection(&[PROTOCOL_ERROR]));
    cases.add("6.9", "WINDOW_UPDATE of 0 for a stream", &[slow(), update(1, 0)], Either(&[PROTOCOL_ERROR]));
    let short = frame(kind::WINDOW_UPDATE, 0, 0, &[0, 0, 1]);
    cases.add("6.9", "WINDOW_UPDATE of three bytes", &[short], Connection(WRONG_SIZE));
    cases.add("6.9.1", "a window beyond 2^31 - 1 for all", &[update(0, MOST), update(0, 1)], Connection(flow));
    cases.add("6.9.1", "a window beyond 2^31 - 1 for a stream", &[slow(), update(1, MOST), update(1, 1)], Stream(flow));
    let grown = [slow(), update(1, MOST - 65_535), setting(4, 65_536)];
    cases.add("6.9.2", "settings that overflow a window", &grown, Connection(flow));
}

fn continuations(cases: &mut Cases) {
    use Expect::{Answer, Connection};
    let wrong = Connection(&[PROTOCOL_ERROR]);
    let more = |stream, flags| frame(kind::CONTINUATION, flags, stream, &fields(&[("x", "y")]));
    let open = || frame(kind::HEADERS, END_STREAM, 1, &fields(GET));
    cases.add("6.10", "two CONTINUATION", &[open(), more(1, 0), more(1, END_HEADERS)], Answer(200));
    cases.add(
        "6.10",
        "a block cut inside a field",
        &[
            frame(kind::HEADERS, END_STREAM, 1, &fields(GET)[..20]),
            frame(kind::CONTINUATION, END_HEADERS, 1, &fields(GET)[20..]),
        ],
        Answer(200),
    );
    cases.add("6.10", "CONTINUATION on stream 0", &[open(), more(0, END_HEADERS)], wrong);
    cases.add("6.10", "CONTINUATION on another stream", &[open(), more(3, END_HEADERS)], wrong);
    cases.add("6.10", "CONTINUATION behind the end", &[post(&[]), more(1, END_HEADERS)], wrong);
    cases.add("6.10", "CONTINUATION behind DATA", &[post(&[]), data(1, 0, b"x"), more(1, END_HEADERS)], wrong);
}

fn messages(cases: &mut Cases) {
    use Expect::{Answer, Dropped, Either, Malformed};
    let length = |value| post(&[("content-length", value)]);
    let trailers = |list: &[(&str, &str)]| headers(1, END_STREAM, list);
    cases.add(
        "8.1",
        "a body with trailers",
        &[post(&[]), data(1, 0, b"hello"), trailers(&[("x-sum", "1")])],
        Answer(200),
    );
    let open = [post(&[]), data(1, 0, b"hello"), headers(1, 0, &[("x-sum", "1")])];
    cases.add("8.1", "trailers that do not end the stream", &open, Either(&[PROTOCOL_ERROR]));
    cases.add("8.1", "a pseudo field in trailers", &[post(&[]), data(1, 0, b"x"), trailers(&[PATH])], Dropped);
    cases.add("8.1", "a status in trailers", &[post(&[]), data(1, 0, b"x"), trailers(&[(":status", "200")])], Dropped);
    cases.add("8.1", "an uppercase trailer", &[post(&[]), data(1, 0, b"x"), trailers(&[("X-Sum", "1")])], Malformed);
    cases.add("8.1.1", "a body as long as announced", &[length("5"), data(1, END_STREAM, b"hello")], Answer(200));
    cases.add("8.1.1", "a body that is shorter", &[length("5"), data(1, END_STREAM, b"hell")], Malformed);
    cases.add("8.1.1", "a body that is longer", &[length("5"), data(1, END_STREAM, b"helloo")], Malformed);
    cases.add(
        "8.1.1",
        "a body that is longer in pieces",
        &[length("5"), data(1, 0, b"hel"), data(1, 1, b"loo")],
        Malformed,
    );
    cases.add("8.1.1", "no body where one is announced", &[get(&[("content-length", "5")])], Malformed);
    let cut = [length("5"), data(1, 0, b"hell"), trailers(&[("x-sum", "1")])];
    cases.add("8.1.1", "trailers before the body's end", &cut, Malformed);
    for value in ["5,5", "+5", "-5", "five", "5 5", "18446744073709551616"] {
        cases.add(
            "8.1.1",
            format!("content-length {value}"),
            &[length(value), data(1, END_STREAM, b"hello")],
            Malformed,
        );
    }
    let twice = post(&[("content-length", "5"), ("content-length", "5")]);
    cases.add("8.1.1", "two lengths", &[twice, data(1, END_STREAM, b"hello")], Malformed);
    let connect: &[(&str, &str)] = &[(":method", "CONNECT"), AUTHORITY];
    let tunnel = |more: &[(&str, &str)]| headers(1, 0, &[connect, more].concat());
    cases.add("8.5", "CONNECT with a scheme and a path", &[tunnel(&[SCHEME, PATH])], Malformed);
    cases.add("8.5", "CONNECT with a path", &[tunnel(&[PATH])], Malformed);
    cases.add("8.5", "CONNECT without authority", &[headers(1, 0, &[(":method", "CONNECT")])], Malformed);
    cases.add("8.5", "CONNECT of a protocol, not offered", &[tunnel(&[SCHEME, PATH, (":protocol", "x")])], Malformed);
}

fn field_names_and_values(cases: &mut Cases) {
    use Expect::{Answer, Malformed};
    for name in ["X", "xY", "x y", "x:y", "x\u{1}", "x\u{7f}", "", "x\r\ny", "x\0", "x\u{e9}", "x(", "x\""] {
        cases.add("8.2.1", format!("the name {name:?}"), &[get(&[(name, "v")])], Malformed);
    }
    for value in ["\0", "a\0b", "a\rb", "a\nb", "a\r\nx: y", "\r", "\n"] {
        cases.add("8.2.1", format!("the value {value:?}"), &[get(&[("x", value)])], Malformed);
    }
    for (name, value) in [
        ("connection", "close"),
        ("connection", "x"),
        ("keep-alive", "5"),
        ("proxy-connection", "keep-alive"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "h2c"),
        ("te", "gzip"),
        ("te", "trailers, gzip"),
    ] {
        cases.add("8.2.2", format!("{name}: {value}"), &[get(&[(name, value)])], Malformed);
    }
    cases.add("8.2.2", "te: trailers", &[get(&[("te", "trailers")])], Answer(200));
    cases.add("8.2.3", "cookies apart", &[get(&[("cookie", "a=1"), ("cookie", "b=2")])], Answer(200));
}

fn pseudo_fields(cases: &mut Cases) {
    use Expect::{Answer, Malformed};
    let mut of = |section, name: &str, list: &[(&str, &str)], expect| {
        cases.add(section, name, &[headers(1, END_STREAM, list)], expect);
    };
    of("8.3", "an unknown one", &[GET, &[(":x", "y")]].concat(), Malformed);
    of("8.3", "one of answers", &[GET, &[(":status", "200")]].concat(), Malformed);
    of("8.3", "one behind a field", &[METHOD, SCHEME, PATH, ("x", "y"), AUTHORITY], Malformed);
    of("8.3.1", "no method", &[SCHEME, PATH, AUTHORITY], Malformed);
    of("8.3.1", "no scheme", &[METHOD, PATH, AUTHORITY], Malformed);
    of("8.3.1", "no path", &[METHOD, SCHEME, AUTHORITY], Malformed);
    for twice in GET {
        of("8.3.1", &format!("{} twice", twice.0), &[GET, &[*twice]].concat(), Malformed);
    }
    for path in ["", "case", "*", "/c ase", "/c\u{1}ase", "/c\u{e9}", "http://raw.mesh/case", "//\0"] {
        of("8.3.1", &format!("the path {path:?}"), &[METHOD, SCHEME, (":path", path), AUTHORITY], Malformed);
    }
    for method in ["", "GE T", "G\0T", "G\u{e9}T", "GET /x HTTP/1.1"] {
        of("8.3.1", &format!("the method {method:?}"), &[(":method", method), SCHEME, PATH, AUTHORITY], Malformed);
    }
    for scheme in ["", "ht tp", "http:", "\0"] {
        of("8.3.1", &format!("the scheme {scheme:?}"), &[METHOD, (":scheme", scheme), PATH, AUTHORITY], Malformed);
    }
    for authority in ["", "u@raw.mesh", "raw.mesh/x", "raw mesh", "raw.mesh:x", "raw.mesh:80:81", "raw.mesh\r\nx: y"] {
        of(
            "8.3.1",
            &format!("the authority {authority:?}"),
            &[METHOD, SCHEME, PATH, (":authority", authority)],
            Malformed,
        );
    }
    of("8.3.1", "a host that says something else", &[GET, &[("host", "other.mesh")]].concat(), Malformed);
    of("8.3.1", "two hosts", &[&GET[..3], &[("host", "raw.mesh"), ("host", "raw.mesh")]].concat(), Malformed);
    of("8.3.1", "a host that says the same", &[GET, &[("host", "raw.mesh")]].concat(), Answer(200));
    of("8.3.1", "a host alone", &[&GET[..3], &[("host", "raw.mesh")]].concat(), Answer(200));
    let asterisk = [(":method", "OPTIONS"), SCHEME, (":path", "*"), AUTHORITY];
    of("8.3.1", "OPTIONS of all", &asterisk, Answer(200));
}

/// Reads until something has come of stream 1, or the connection ends.
fn outcome(connection: &mut Frames) -> Result<Came, String> {
    while let Some(frame) = connection.read()? {
        match frame.kind {
            kind::HEADERS if frame.stream == 1 => return Ok(Came::Answer(frame.status())),
            kind::RST_STREAM if frame.stream == 1 => return Ok(Came::Reset(frame.word(0))),
            kind::GOAWAY if frame.word(4) != 0 => return Ok(Came::Gone(Some(frame.word(4)))),
            _ => {}
        }
    }
    Ok(Came::Gone(None))
}

/// Whether a request on another stream of the connection is answered 200.
fn goes_on(connection: &mut Frames, stream: u32) -> Result<bool, String> {
    let fields = [METHOD, SCHEME, (":path", "/next"), AUTHORITY];
    connection.send(&headers(stream, END_STREAM, &fields));
    while let Some(frame) = connection.read()? {
        if frame.stream == stream && frame.kind == kind::HEADERS {
            // The first byte is 200's place in the static table.
            return Ok(frame.payload.first() == Some(&0x88));
        }
    }
    Ok(false)
}

impl Expect {
    fn is_met(self, came: &Came) -> bool {
        match (self, came) {
            (Self::Answer(wanted), Came::Answer(status)) => wanted == *status,
            (Self::Malformed, Came::Answer(status)) => *status == 400,
            (Self::Dropped, Came::Answer(status)) => *status == 200,
            (Self::End, Came::Gone(code)) => code.is_none_or(|code| code == PROTOCOL_ERROR),
            (Self::Malformed, Came::Reset(code) | Came::Gone(Some(code))) => *code == PROTOCOL_ERROR,
            (Self::Stream(codes) | Self::Either(codes), Came::Reset(code)) => codes.contains(code),
            (Self::Connection(codes) | Self::Either(codes), Came::Gone(Some(code))) => codes.contains(code),
            _ => false,
        }
    }
}

fn raw() -> (Fleet, Recorder) {
    let recorder = Recorder::start(|path| match path {
        "/slow" => Script::bytes(""),
        "/large" => Script::saying(&"x".repeat(200_000)),
        path => Script::saying(path),
    });
    let fleet = Fleet::start(1, &|_, config| {
        config.proxy.request_timeout = std::time::Duration::from_secs(3);
        Node::serve(config, "raw", recorder.address(), None);
    });
    fleet.wait_service("raw", 1);
    (fleet, recorder)
}

#[test]
fn every_case_of_rfc_9113_ends_as_the_rfc_says_and_others_go_on() {
    let (fleet, recorder) = raw();
    let proxy = fleet.nodes[0].proxy;
    let cases = cases();
    let (mut faults, mut harder) = (Vec::new(), Vec::new());
    for case in &cases {
        let count = || recorder.requests().iter().filter(|request| request.asked.ends_with(" /case")).count();
        let before = count();
        let mut connection = if case.is_bare { Frames::connect(proxy) } else { Frames::open(proxy, &[]) };
        connection.send(&case.bytes);
        let came = outcome(&mut connection).unwrap_or(Came::Nothing);
        if !case.expect.is_met(&came) {
            faults.push(format!("{case}: wanted {:?}, got {came:?}", case.expect));
            continue;
        }
        if case.expect == Expect::Malformed && matches!(came, Came::Gone(_)) {
            harder.push(case.to_string());
        }
        if !matches!(came, Came::Gone(_)) && case.next > 0 && goes_on(&mut connection, case.next) != Ok(true) {
            faults.push(format!("{case}: the connection does not go on after {came:?}"));
        }
        let is_forwarded = |request: &Recorded| String::from_utf8_lossy(&request.body).contains("\n:");
        if case.expect == Expect::Dropped && recorder.requests().iter().any(is_forwarded) {
            faults.push(format!("{case}: a pseudo field reached the application as a trailer"));
        }
        if case.expect == Expect::Malformed && count() > before {
            faults.push(format!("{case}: a malformed request reached the application whole"));
        }
    }
    eprintln!("{} cases; malformed requests that end their connection: {}", cases.len(), harder.join("; "));
    assert!(faults.is_empty(), "{} of {} cases:\n{}", faults.len(), cases.len(), faults.join("\n"));
    let is_of_a_field =
        |case: &String| ["name", "value", "method", "trailer", "an unknown one"].iter().any(|word| case.contains(word));
    assert!(harder.iter().all(is_of_a_field), "{harder:#?}");
    assert!(cases.len() > 150, "{} cases", cases.len());
}

/// The next frame of a kind.
fn next_of(connection: &mut Frames, kind: u8) -> Frame {
    loop {
        let frame = connection.read().unwrap().expect("the connection goes on");
        if frame.kind == kind {
            return frame;
        }
    }
}

/// How much of a body still comes before the answer to a PING.
fn bytes_before_pong(connection: &mut Frames) -> usize {
    connection.send(&frame(kind::PING, 0, 0, b"no more?"));
    let mut bytes = 0;
    loop {
        let frame = connection.read().unwrap().expect("the connection goes on");
        match frame.kind {
            kind::PING => return bytes,
            kind::DATA => bytes += frame.payload.len(),
            _ => {}
        }
    }
}

#[test]
fn settings_and_pings_are_acknowledged_and_windows_are_kept() {
    let (fleet, _recorder) = raw();
    let mut connection = Frames::open(fleet.nodes[0].proxy, &[(4, 0)]);
    // 6.5: the first frame of a server is SETTINGS; 6.5.3: those of the client are acknowledged.
    let first = connection.read().unwrap().unwrap();
    assert_eq!((first.kind, first.flags & ACK), (kind::SETTINGS, 0));
    assert_eq!(next_of(&mut connection, kind::SETTINGS).flags, ACK);
    // 6.7: with the same payload.
    connection.send(&frame(kind::PING, 0, 0, b"whatever"));
    let pong = next_of(&mut connection, kind::PING);
    assert_eq!((pong.flags, pong.payload.as_slice()), (ACK, &b"whatever"[..]));
    // 6.9.2: nothing is sent into a window of 0, then just what it has room for.
    connection.send(&headers(1, END_STREAM, &[METHOD, SCHEME, (":path", "/large"), AUTHORITY]));
    assert_eq!(next_of(&mut connection, kind::HEADERS).status(), 200);
    assert_eq!(bytes_before_pong(&mut connection), 0);
    for room in [1, 10, 5000] {
        connection.send(&word(kind::WINDOW_UPDATE, 1, room));
        let mut got = 0;
        while got < room {
            got += u32::try_from(next_of(&mut connection, kind::DATA).payload.len()).unwrap();
        }
        assert_eq!(got, room);
    }
    // 6.9.2: a change of the initial window is one of each open stream's.
    connection.send(&setting(4, 20_000));
    let mut got = 0;
    while got < 20_000 {
        got += next_of(&mut connection, kind::DATA).payload.len();
    }
    assert_eq!((got, bytes_before_pong(&mut connection)), (20_000, 0));
}

#[test]
fn streams_beyond_the_limit_are_refused_and_those_within_are_served() {
    let (fleet, _recorder) = raw();
    let mut connection = Frames::open(fleet.nodes[0].proxy, &[]);
    let first = connection.read().unwrap().unwrap();
    let told: Vec<&[u8]> = first.payload.chunks(6).filter(|one| one.starts_with(&[0, 3])).collect();
    let most = u32::from_be_bytes(told[0][2..].try_into().unwrap());
    assert_eq!(next_of(&mut connection, kind::SETTINGS).flags, ACK);
    // 5.1.2: what is over is refused with a code that says that it may be sent again.
    for number in 0..=most {
        connection.send(&headers(2 * number + 1, 0, &[POST, SCHEME, PATH, AUTHORITY]));
    }
    let refused = next_of(&mut connection, kind::RST_STREAM);
    assert_eq!(refused.stream, 2 * most + 1);
    assert!([REFUSED_STREAM, PROTOCOL_ERROR].contains(&refused.word(0)), "{refused:?}");
    connection.send(&data(1, END_STREAM, b"the first one"));
    let answer = next_of(&mut connection, kind::HEADERS);
    assert_eq!((answer.stream, answer.status()), (1, 200));
}
