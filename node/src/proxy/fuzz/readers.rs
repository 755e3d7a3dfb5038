//! Servers and proxies as they were found in the wild: each looks over some faults, and so may see another request.

use super::generate::Chance;

/// What a reader looks over.
#[derive(Debug, Clone, Copy)]
#[expect(clippy::struct_excessive_bools, reason = "each is a habit of its own, and all combine")]
pub(super) struct Tolerances {
    /// A line feed alone ends a line.
    lone_line_feed: bool,
    /// A carriage return alone ends a line.
    lone_carriage_return: bool,
    /// Blanks and control characters around a name do not belong to it.
    trims_names: bool,
    /// A line that begins with a blank belongs to the one before.
    unfolds: bool,
    /// `Content-Length` beats `Transfer-Encoding`.
    length_wins: bool,
    /// The last `Content-Length` counts, not the first.
    last_length: bool,
    /// A coding that merely contains `chunked` is that.
    loose_coding: bool,
    /// Numbers are read as C's `strtol` reads them: blanks and a sign first, up to the first byte that is no digit.
    loose_numbers: bool,
    /// The same with the base taken from the prefix: `0x` or `0`.
    guesses_base: bool,
    /// Two bytes behind a chunk are skipped whatever they are.
    blind_chunk_ends: bool,
    /// An HTTP/1.0 request may be chunked, though most readers ignore the coding there.
    chunked_in_10: bool,
}

enum Body {
    None,
    Length(usize),
    Chunked,
}

impl Tolerances {
    pub(super) fn some(chance: &mut Chance) -> Self {
        let bits = chance.draw() & chance.draw();
        let has = |bit: u32| bits & (1 << bit) != 0;
        Self {
            lone_line_feed: has(0),
            lone_carriage_return: has(1),
            trims_names: has(2),
            unfolds: has(3),
            length_wins: has(4),
            last_length: has(5),
            loose_coding: has(6),
            loose_numbers: has(7),
            guesses_base: has(8),
            blind_chunk_ends: has(9),
            chunked_in_10: has(10),
        }
    }

    /// How many bytes the request at the beginning of `bytes` has; `None` where this reader refuses it or waits for more.
    pub(super) fn length_of_request(&self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        let request_line = self.line(bytes, &mut at)?;
        let is_old = request_line.ends_with(b"1.0");
        let (mut lengths, mut is_chunked) = (Vec::new(), false);
        let mut fields: Vec<Vec<u8>> = Vec::new();
        loop {
            let line = self.line(bytes, &mut at)?;
            if line.is_empty() {
                break;
            }
            match fields.last_mut() {
                Some(last) if self.unfolds && matches!(line.first(), Some(b' ' | b'\t')) => {
                    last.extend_from_slice(line);
                }
                _ => fields.push(line.to_vec()),
            }
        }
        for field in &fields {
            let Some(colon) = field.iter().position(|byte| *byte == b':') else { continue };
            let (name, value) = (self.name(&field[..colon]), &field[colon + 1..]);
            if name == b"content-length" {
                lengths.push(self.length(value)?);
            } else if name == b"transfer-encoding" && (!is_old || self.chunked_in_10) {
                is_chunked |= self.is_chunked(value);
            }
        }
        let length = if self.last_length { lengths.last() } else { lengths.first() };
        let body = match length {
            _ if is_chunked && !(self.length_wins && length.is_some()) => Body::Chunked,
            Some(length) => Body::Length(*length),
            None => Body::None,
        };
        match body {
            Body::None => Some(at),
            Body::Length(length) => at.checked_add(length).filter(|end| *end <= bytes.len()),
            Body::Chunked => self.chunks(bytes, at),
        }
    }

    /// The next line without its end.
    fn line<'b>(&self, bytes: &'b [u8], at: &mut usize) -> Option<&'b [u8]> {
        let rest = bytes.get(*at..)?;
        for (index, byte) in rest.iter().enumerate() {
            let ends = match byte {
                b'\r' if rest.get(index + 1) == Some(&b'\n') => Some(2),
                b'\r' if self.lone_carriage_return => Some(1),
                b'\n' if self.lone_line_feed => Some(1),
                _ => None,
            };
            if let Some(end) = ends {
                *at += index + end;
                return rest.get(..index);
            }
        }
        None
    }

    fn name(&self, name: &[u8]) -> Vec<u8> {
        let is_noise = |byte: &u8| *byte <= b' ';
        let kept: Vec<u8> = if self.trims_names {
            name.iter().copied().filter(|byte| !is_noise(byte)).collect()
        } else {
            name.to_vec()
        };
        kept.to_ascii_lowercase()
    }

    fn is_chunked(&self, value: &[u8]) -> bool {
        let value = value.to_ascii_lowercase();
        if self.loose_coding {
            value.windows(7).any(|part| part == b"chunked")
        } else {
            value.trim_ascii() == b"chunked"
        }
    }

    /// A number in a header; a reader that does not understand it refuses.
    fn length(&self, value: &[u8]) -> Option<usize> {
        if self.loose_numbers {
            return self.number(value, 10);
        }
        let value = value.trim_ascii();
        let is_number = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
        is_number.then(|| self.number(value, 10)).flatten()
    }

    fn number(&self, value: &[u8], base: u32) -> Option<usize> {
        let mut value = value.trim_ascii_start();
        value = value.strip_prefix(b"+").unwrap_or(value);
        let mut base = base;
        if self.guesses_base && base == 10 && value.first() == Some(&b'0') {
            base = 8;
        }
        if (self.guesses_base || base == 16) && (value.starts_with(b"0x") || value.starts_with(b"0X")) {
            (base, value) = (16, &value[2..]);
        }
        let digits = value.iter().map_while(|byte| char::from(*byte).to_digit(base));
        digits.into_iter().try_fold(0_usize, |sum, digit| sum.checked_mul(base as usize)?.checked_add(digit as usize))
    }

    fn chunks(&self, bytes: &[u8], mut at: usize) -> Option<usize> {
        loop {
            let line = self.line(bytes, &mut at)?;
            let size = if self.loose_numbers {
                self.number(line, 16)?
            } else {
                let digits = line.split(|byte| *byte == b';').next()?.trim_ascii();
                if digits.is_empty() || !digits.iter().all(u8::is_ascii_hexdigit) {
                    return None;
                }
                self.number(digits, 16)?
            };
            if size == 0 {
                break;
            }
            at = at.checked_add(size).filter(|end| *end <= bytes.len())?;
            if self.blind_chunk_ends {
                at = at.checked_add(2).filter(|end| *end <= bytes.len())?;
            } else if !self.line(bytes, &mut at)?.is_empty() {
                return None;
            }
        }
        while !self.line(bytes, &mut at)?.is_empty() {}
        Some(at)
    }
}
