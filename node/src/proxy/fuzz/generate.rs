//! A connection's bytes from a seed: requests of the grammar, most with a trick of those that smuggle, some bytes changed.

/// Chance whose sequence is fixed by its seed (splitmix64).
#[derive(Debug, Clone)]
pub(super) struct Chance(u64);

impl Chance {
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) const fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.draw() % bound.max(1) as u64).unwrap_or(0)
    }

    fn one_in(&mut self, bound: usize) -> bool {
        self.below(bound) == 0
    }

    /// The first of them most of the time.
    fn of<'a>(&mut self, most_in: usize, choices: &[&'a str]) -> &'a str {
        let at = if self.one_in(most_in) { self.below(choices.len()) } else { 0 };
        choices.get(at).copied().unwrap_or_default()
    }
}

const METHODS: &[&str] = &["GET", "POST", "PUT", "HEAD", "OPTIONS", "CONNECT", "PATCH", "get", "G:T", "GE\tT", ""];
const TARGETS: &[&str] = &[
    "/",
    "/a?b=c",
    "http://a.mesh/x",
    "http://b.mesh",
    "*",
    "a.mesh:80",
    "/a#b",
    "//c",
    "/%00",
    "/a b",
    "/\u{e9}",
    "http:///x",
    "x:",
    "",
];
const VERSIONS: &[&str] = &["HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/1.2", "http/1.1", "HTTP/1.1 ", "HTTP/01.1", ""];
const STATUS_LINES: &[&str] = &[
    "HTTP/1.1 200 OK",
    "HTTP/1.1 404 Not Found",
    "HTTP/1.1 200",
    "HTTP/1.0 200 OK",
    "HTTP/1.1 204 No Content",
    "HTTP/1.1 304 Not Modified",
    "HTTP/1.1 101 Switching Protocols",
    "HTTP/1.1 100 Continue",
    "HTTP/1.1 600 x",
    "HTTP/1.1 99 x",
    "HTTP/1.1  200 OK",
    "HTTP/1.1 200OK",
    "HTTP/1.1 +20 OK",
    "HTTP/1.1 200 \u{e9}\t.",
    "HTTP/1.1 200 a\0",
    "HTTP/1.2 200 OK",
    "HTTP/2.0 200 OK",
    "http/1.1 200 OK",
    "200 OK",
    "",
];
const INFORMATIONAL: &[&str] = &[
    "HTTP/1.1 100 Continue\r\n\r\n",
    "HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n",
    "HTTP/1.1 102 x\r\nContent-Length: 5\r\n\r\n",
    "HTTP/1.1 102 x\r\nTransfer-Encoding: chunked\r\n\r\n",
    "HTTP/1.1 199\r\n\r\n",
    "HTTP/1.1 100 Continue\n\n",
];
const HOSTS: &[&str] =
    &["Host: a.mesh\r\n", "", "Host: a.mesh\r\nHost: b.mesh\r\n", "Host : a.mesh\r\n", "host:\ta.mesh\r\n"];
const FIELDS: &[&str] = &[
    "Accept: */*\r\n",
    "X: a, b\r\nX: c\r\n",
    "Connection: close\r\n",
    "Connection: keep-alive\r\n",
    "Expect: 100-continue\r\n",
    "Upgrade: x\r\n",
    "X: a\r\n b\r\n",
    "X: a\nY: b\r\n",
    "X: a\rY: b\r\n",
    "X: \u{e9}\r\n",
    "X: a\0b\r\n",
    "X\r\n",
    ": x\r\n",
    "X-\u{b}: y\r\n",
    "\r\n",
    "Content_Length: 7\r\n",
];
const CODINGS: &[&str] = &[
    "Transfer-Encoding: chunked\r\n",
    "transfer-encoding:chunked\r\n",
    "TRANSFER-ENCODING: CHUNKED\r\n",
    "Transfer-Encoding: xchunked\r\n",
    "Transfer-Encoding: chunked, identity\r\n",
    "Transfer-Encoding: identity, chunked\r\n",
    "Transfer-Encoding: gzip, chunked\r\n",
    "Transfer-Encoding:\tchunked\t\r\n",
    "Transfer-Encoding : chunked\r\n",
    " Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n",
    "Transfer-Encoding: x\r\nTransfer-Encoding: chunked\r\n",
    "Transfer-Encoding:\r\n chunked\r\n",
    "Transfer-Encoding: \u{b}chunked\r\n",
    "Transfer-Encoding: chunked\0\r\n",
    "X: y\nTransfer-Encoding: chunked\r\n",
    "X: y\rTransfer-Encoding: chunked\r\n",
    "Transfer-Encoding: \"chunked\"\r\n",
    "Transfer-Encoding: chunked;q=1\r\n",
    "Transfer_Encoding: chunked\r\n",
    "Transfer-Encoding: \r\n",
    "\0Transfer-Encoding: chunked\r\n",
];
/// `N` is the length, `M` another one.
const LENGTHS: &[&str] = &[
    "Content-Length: N\r\n",
    "content-length:N\r\n",
    "Content-Length: M\r\n",
    "Content-Length: +N\r\n",
    "Content-Length: -N\r\n",
    "Content-Length: 0N\r\n",
    "Content-Length: 00\r\n",
    "Content-Length: 0xN\r\n",
    "Content-Length: N, N\r\n",
    "Content-Length: N M\r\n",
    "Content-Length: N\r\nContent-Length: N\r\n",
    "Content-Length: M\r\nContent-Length: N\r\n",
    "Content-Length: N\0\r\n",
    "Content-Length: \r\n",
    "Content-Length:\r\n N\r\n",
    "Content-Length : N\r\n",
    "Content-Length: N.0\r\n",
    "Content-Length: \u{b}N\r\n",
    "Content-Length: 18446744073709551616\r\n",
    "X: y\nContent-Length: M\r\n",
    "Content-Length\0: M\r\n",
];
const BODIES: &[&str] = &[
    "hello",
    "0\r\n\r\n",
    "\r\n",
    "GET /s HTTP/1.1\r\nHost: a.mesh\r\n\r\n",
    "5\r\nhello\r\n0\r\n\r\n",
    "0\r\n\r\nGET /s HTTP/1.1\r\nHost: b.mesh\r\n\r\n",
    "\n\n",
];
/// `S` is the size.
const SIZES: &[&str] = &[
    "S\r\n",
    "S;a=b\r\n",
    "00S\r\n",
    "S \r\n",
    "S\t;a=\"b;c\"\r\n",
    "S\n",
    "S\r",
    "+S\r\n",
    "0xS\r\n",
    "S 1\r\n",
    " S\r\n",
    "S;\n\r\n",
    "S;a\rb\r\n",
    "S;\0\r\n",
    "-S\r\n",
    "S_0\r\n",
    "10000000000000000S\r\n",
    "S;\u{7f}\r\n",
    "S;\u{e9}\r\n",
];
const CHUNK_ENDS: &[&str] = &["\r\n", "\n", "", "\r", "x\r\n", "\r\n\r\n"];
const TRAILERS: &[&str] = &[
    "",
    "X-Sum: 1\r\n",
    "Content-Length: 7\r\n",
    "Transfer-Encoding: chunked\r\n",
    "X: 1\n",
    "X : 1\r\n",
    "X\r\n",
    "X: 1\r\n 2\r\n",
    "X: \0\r\n",
    ": 1\r\n",
    "GET /s HTTP/1.1\r\n",
];
const SPECIAL: &[u8] = b"\r\n\0 \t:;,-+059aX#/\x0b\x0c\x7f\x80\"";

/// The bytes of one connection.
pub(super) fn connection(chance: &mut Chance) -> Vec<u8> {
    let mut bytes = Vec::new();
    // Some without any trick, so that what is sound is seen to pass.
    let most_in = [usize::MAX, 12, 4][chance.below(3)];
    for _ in 0..=chance.below(3) {
        request(chance, most_in, &mut bytes);
    }
    let changes = if most_in == usize::MAX { 0 } else { [0, 0, 1, 3][chance.below(4)] };
    for _ in 0..changes {
        change(chance, &mut bytes);
    }
    bytes
}

fn request(chance: &mut Chance, most_in: usize, bytes: &mut Vec<u8>) {
    if chance.one_in(10) {
        bytes.extend_from_slice(b"\r\n");
    }
    let is_plain = most_in == usize::MAX;
    let method = if is_plain { METHODS[chance.below(4)] } else { chance.of(3, METHODS) };
    let target = if is_plain { TARGETS[chance.below(2)] } else { chance.of(most_in, TARGETS) };
    bytes.extend_from_slice(format!("{method} {target} {}\r\n", chance.of(most_in, VERSIONS)).as_bytes());
    bytes.extend_from_slice(chance.of(most_in, HOSTS).as_bytes());
    fields_and_body(chance, most_in, bytes);
}

/// The bytes of an answer, and of what may follow it.
pub(super) fn answer(chance: &mut Chance) -> Vec<u8> {
    let mut bytes = Vec::new();
    let most_in = [usize::MAX, 12, 4][chance.below(3)];
    for _ in 0..chance.below(3) {
        if chance.one_in(3) {
            bytes.extend_from_slice(chance.of(most_in, INFORMATIONAL).as_bytes());
        }
    }
    let is_plain = most_in == usize::MAX;
    let status = if is_plain { STATUS_LINES[chance.below(4)] } else { chance.of(3, STATUS_LINES) };
    bytes.extend_from_slice(format!("{status}\r\n").as_bytes());
    fields_and_body(chance, most_in, &mut bytes);
    let changes = if is_plain { 0 } else { [0, 0, 1, 3][chance.below(4)] };
    for _ in 0..changes {
        change(chance, &mut bytes);
    }
    bytes
}

fn fields_and_body(chance: &mut Chance, most_in: usize, bytes: &mut Vec<u8>) {
    let is_plain = most_in == usize::MAX;
    for _ in 0..chance.below(3) {
        let field = if is_plain { FIELDS[chance.below(2)] } else { FIELDS[chance.below(FIELDS.len())] };
        if is_plain || chance.one_in(2) {
            bytes.extend_from_slice(field.as_bytes());
        }
    }
    if chance.one_in(60) {
        bytes.extend_from_slice(format!("X-Long: {}\r\n", "l".repeat(chance.below(1200))).as_bytes());
    }
    if chance.one_in(100) {
        bytes.extend_from_slice("X:\r\n".repeat(chance.below(130)).as_bytes());
    }
    let body = (0..chance.below(3)).map(|_| BODIES[chance.below(BODIES.len())]).collect::<String>();
    match chance.below(if is_plain { 3 } else { 5 }) {
        0 => bytes.extend_from_slice(b"\r\n"),
        1 => {
            length(chance, most_in, body.len(), bytes);
            bytes.extend_from_slice(format!("\r\n{body}").as_bytes());
        }
        2 => {
            bytes.extend_from_slice(chance.of(most_in, CODINGS).as_bytes());
            bytes.extend_from_slice(b"\r\n");
            chunks(chance, most_in, &body, bytes);
        }
        3 => {
            let mut coded = Vec::new();
            chunks(chance, most_in, &body, &mut coded);
            let told = if chance.one_in(2) { coded.len() } else { chance.below(coded.len()) };
            bytes.extend_from_slice(chance.of(2, CODINGS).as_bytes());
            length(chance, 2, told, bytes);
            bytes.extend_from_slice(b"\r\n");
            bytes.extend_from_slice(&coded);
        }
        _ => {
            length(chance, 2, body.len(), bytes);
            bytes.extend_from_slice(chance.of(1, CODINGS).as_bytes());
            bytes.extend_from_slice(format!("\r\n{body}").as_bytes());
        }
    }
}

fn length(chance: &mut Chance, most_in: usize, length: usize, bytes: &mut Vec<u8>) {
    let line = chance.of(most_in, LENGTHS);
    let other = chance.below(40).to_string();
    bytes.extend_from_slice(line.replace('N', &length.to_string()).replace('M', &other).as_bytes());
}

fn chunks(chance: &mut Chance, most_in: usize, body: &str, bytes: &mut Vec<u8>) {
    let mut rest = body.as_bytes();
    while !rest.is_empty() {
        let (chunk, behind) = rest.split_at(1 + chance.below(rest.len()));
        bytes.extend_from_slice(chance.of(most_in, SIZES).replace('S', &format!("{:x}", chunk.len())).as_bytes());
        bytes.extend_from_slice(chunk);
        bytes.extend_from_slice(chance.of(most_in, CHUNK_ENDS).as_bytes());
        rest = behind;
    }
    bytes.extend_from_slice(chance.of(most_in, SIZES).replace('S', "0").as_bytes());
    if most_in < usize::MAX || chance.one_in(3) {
        let most_in = if most_in == usize::MAX { 2 } else { most_in };
        bytes.extend_from_slice(
            chance.of(most_in, &TRAILERS[..if most_in == 2 { 2 } else { TRAILERS.len() }]).as_bytes(),
        );
    }
    bytes.extend_from_slice(b"\r\n");
}

fn change(chance: &mut Chance, bytes: &mut Vec<u8>) {
    let at = chance.below(bytes.len() + 1);
    let special = SPECIAL[chance.below(SPECIAL.len())];
    match chance.below(5) {
        0 => bytes.insert(at, special),
        1 if at < bytes.len() => bytes[at] = special,
        2 if at < bytes.len() => {
            bytes.remove(at);
        }
        3 => {
            let end = bytes.len().min(at + chance.below(30));
            let copy = bytes[at..end].to_vec();
            let to = chance.below(bytes.len() + 1);
            bytes.splice(to..to, copy);
        }
        _ => {
            let end = bytes.len().min(at + chance.below(30));
            bytes.drain(at..end);
        }
    }
}
