//! From the bytes of a query to the bytes of its answer. Pure; nothing that comes in makes it fail otherwise than by a
//! value.

use domain::base::iana::{Class, Opcode, OptRcode, Rcode};
use domain::base::message_builder::{AdditionalBuilder, AnswerBuilder, PushError};
use domain::base::{Message, MessageBuilder, Name, ParsedName, Question, Rtype, Serial, StaticCompressor, Ttl};
use domain::rdata::{A, Aaaa, Ns, Soa, Srv, Txt};

use super::zone::{Data, Said, ZONE};

/// How long an answer may be remembered, that there is none included: a listener or a service may come at any time.
const TTL: Ttl = Ttl::from_secs(5);
/// What every asker takes in one datagram (RFC 1035, section 2.3.4).
const UDP_BYTES: u16 = 512;
/// The most that is sent in one: it crosses any link in one piece (DNS flag day 2020).
const UDP_BYTES_MAX: u16 = 1232;
/// An OPT record without options.
const OPT_BYTES: usize = 11;

/// What carries a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Over {
    Udp,
    Tcp,
}

/// An answer, and the word it is counted under.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) bytes: Vec<u8>,
    pub(super) result: &'static str,
}

/// Why a query has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dropped {
    /// Shorter than the head of a message.
    Malformed,
    /// An answer: answering those could go on for ever.
    NotAQuery,
    /// More came than is answered in a second.
    Rate,
    /// More connections than there may be.
    Connections,
    /// The socket did not take it.
    NotSent,
}

impl Dropped {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::NotAQuery => "not_a_query",
            Self::Rate => "rate",
            Self::Connections => "connections_max",
            Self::NotSent => "not_sent",
        }
    }
}

type Target = StaticCompressor<Vec<u8>>;
type Text = Name<Vec<u8>>;

/// Answers one query. `serial` is that of the zone; `look_up` gets the labels of the name in lower case, without the root.
pub(super) fn reply(
    query: &[u8],
    over: Over,
    serial: u64,
    look_up: impl FnOnce(&[String]) -> Said,
) -> Result<Reply, Dropped> {
    let message = Message::from_octets(query).map_err(|_short| Dropped::Malformed)?;
    let header = message.header();
    if header.qr() {
        return Err(Dropped::NotAQuery);
    }
    if header.opcode() != Opcode::QUERY {
        return Ok(bare(&message, Rcode::NOTIMP, "notimp"));
    }
    let Ok(question) = message.sole_question() else { return Ok(bare(&message, Rcode::FORMERR, "formerr")) };
    let edns = message.opt().map(|opt| Edns { bytes: opt.udp_payload_size(), version: opt.version() });
    let asker = Asker { over, edns, serial };
    let Some(name) = labels(question.qname()) else {
        return asker.answer(&message, &question, Rcode::REFUSED, "refused", &[], false);
    };
    let of_zone = matches!(question.qclass(), Class::IN | Class::ANY);
    let is_transfer = [Rtype::AXFR, Rtype::IXFR].contains(&question.qtype());
    if edns.is_some_and(|edns| edns.version > 0) {
        return asker.answer(&message, &question, Rcode::NOERROR, "badvers", &[], false);
    }
    match look_up(&name) {
        Said::Outside => asker.answer(&message, &question, Rcode::REFUSED, "refused", &[], false),
        _ if !of_zone || is_transfer => asker.answer(&message, &question, Rcode::REFUSED, "refused", &[], false),
        Said::NoName => asker.answer(&message, &question, Rcode::NXDOMAIN, "nxdomain", &[], true),
        Said::Name(records) => {
            let fitting = of_type(records, question.qtype());
            let result = if fitting.is_empty() { "nodata" } else { "noerror" };
            asker.answer(&message, &question, Rcode::NOERROR, result, &fitting, fitting.is_empty())
        }
    }
}

/// The labels of a name; `None` where one is no text, which no name of ours is.
fn labels(name: &ParsedName<&[u8]>) -> Option<Vec<String>> {
    let labels = name.iter().filter(|label| !label.is_root());
    labels.map(|label| str::from_utf8(label.as_slice()).ok().map(str::to_ascii_lowercase)).collect()
}

/// The records of a type. Who asks for any is given those of one type, as RFC 8482 allows.
fn of_type(records: Vec<Data>, rtype: Rtype) -> Vec<Data> {
    let wanted = match (rtype, records.first()) {
        (Rtype::ANY, Some(first)) => type_of(first),
        _ => rtype,
    };
    records.into_iter().filter(|record| type_of(record) == wanted).collect()
}

const fn type_of(record: &Data) -> Rtype {
    match record {
        Data::A(_) => Rtype::A,
        Data::Aaaa(_) => Rtype::AAAA,
        Data::Srv { .. } => Rtype::SRV,
        Data::Txt(_) => Rtype::TXT,
        Data::Soa => Rtype::SOA,
        Data::Ns => Rtype::NS,
    }
}

/// An answer of a head alone, to what cannot be read further.
fn bare(message: &Message<&[u8]>, rcode: Rcode, result: &'static str) -> Reply {
    let mut builder = MessageBuilder::new_vec();
    let asked = message.header();
    let header = builder.header_mut();
    header.set_id(asked.id());
    header.set_qr(true);
    header.set_opcode(asked.opcode());
    header.set_rd(asked.rd());
    header.set_rcode(rcode);
    Reply { bytes: builder.finish(), result }
}

/// What the asker said of extensions (RFC 6891).
#[derive(Debug, Clone, Copy)]
struct Edns {
    bytes: u16,
    version: u8,
}

/// How the asker is answered.
#[derive(Debug, Clone, Copy)]
struct Asker {
    over: Over,
    edns: Option<Edns>,
    serial: u64,
}

impl Asker {
    fn answer(
        self,
        message: &Message<&[u8]>,
        question: &Question<ParsedName<&[u8]>>,
        rcode: Rcode,
        result: &'static str,
        records: &[Data],
        tells_soa: bool,
    ) -> Result<Reply, Dropped> {
        let built = self.build(message, question, (rcode, result), records, tells_soa);
        // Whatever does not fit was left out before; this is a name that does not, which no question of 512 bytes is.
        built.map_err(|_too_long| Dropped::Malformed)
    }

    fn build(
        self,
        message: &Message<&[u8]>,
        question: &Question<ParsedName<&[u8]>>,
        (rcode, result): (Rcode, &'static str),
        records: &[Data],
        tells_soa: bool,
    ) -> Result<Reply, PushError> {
        let mut builder = MessageBuilder::from_target(Target::new(Vec::new()))?;
        builder.set_push_limit(self.bytes_max() - OPT_BYTES);
        let mut answer = builder.start_answer(message, rcode)?;
        answer.header_mut().set_aa(rcode != Rcode::REFUSED);
        for record in records {
            if push(&mut answer, question.qname(), record, self.serial).is_err() {
                answer.rewind();
                answer.header_mut().set_tc(true);
                break;
            }
        }
        let mut authority = answer.authority();
        if tells_soa {
            authority.push((zone_name()?, Class::IN, TTL, soa(self.serial)?))?;
        }
        let mut additional = authority.additional();
        additional.clear_push_limit();
        self.tell_edns(&mut additional, result)?;
        Ok(Reply { bytes: additional.finish().into_target(), result })
    }

    fn bytes_max(self) -> usize {
        match self.over {
            Over::Udp => self.edns.map_or(UDP_BYTES, |edns| edns.bytes.clamp(UDP_BYTES, UDP_BYTES_MAX)).into(),
            Over::Tcp => usize::from(u16::MAX),
        }
    }

    fn tell_edns(self, additional: &mut AdditionalBuilder<Target>, result: &str) -> Result<(), PushError> {
        if self.edns.is_none() {
            return Ok(());
        }
        additional.opt(|opt| {
            opt.set_udp_payload_size(UDP_BYTES_MAX);
            if result == "badvers" {
                opt.set_rcode(OptRcode::BADVERS);
            }
            Ok(())
        })
    }
}

fn push(
    answer: &mut AnswerBuilder<Target>,
    name: &ParsedName<&[u8]>,
    record: &Data,
    serial: u64,
) -> Result<(), PushError> {
    match record {
        Data::A(ip) => answer.push((name, Class::IN, TTL, A::new(*ip))),
        Data::Aaaa(ip) => answer.push((name, Class::IN, TTL, Aaaa::new(*ip))),
        Data::Srv { port, target } => answer.push((name, Class::IN, TTL, Srv::new(0, 0, *port, text(target)?))),
        Data::Txt(words) => {
            let words = Txt::<Vec<u8>>::build_from_slice(words.as_bytes()).map_err(|_long| PushError::LimitExceeded)?;
            answer.push((name, Class::IN, TTL, words))
        }
        Data::Soa => answer.push((name, Class::IN, TTL, soa(serial)?)),
        Data::Ns => answer.push((name, Class::IN, TTL, Ns::new(text("localhost")?))),
    }
}

/// Who answers for the zone is always the node one asks. The serial says which snapshot the answer comes from.
fn soa(serial: u64) -> Result<Soa<Text>, PushError> {
    let serial = Serial::from(u32::try_from(serial & u64::from(u32::MAX)).unwrap_or_default());
    Ok(Soa::new(text("localhost")?, text("nobody.invalid")?, serial, TTL, TTL, TTL, TTL))
}

fn zone_name() -> Result<Text, PushError> {
    text(ZONE)
}

fn text(name: &str) -> Result<Text, PushError> {
    Name::vec_from_str(name).map_err(|_long| PushError::LimitExceeded)
}
