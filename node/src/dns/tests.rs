use std::collections::{BTreeMap, HashMap};

use domain::base::iana::{OptRcode, Rcode};
use domain::base::{Message, MessageBuilder, Name, Rtype};
use domain::rdata::AllRecordData;
use policy::explain::{CapacitySource, DistanceSource};
use policy::{Capacity, Place, RouteTable, compile, parse_documents};
use proptest::prelude::*;
use transport::NodeId;

use super::wire::reply;
use super::zone::{Data, Said};
use super::*;
use crate::config::{ListenerConfig, ListenerProtocol, Protocol};
use crate::snapshot::{Endpoint, EndpointStats, ExcludedEndpoint, Here, Missing, ServiceView, Snapshot};

const NOW: Duration = Duration::from_secs(100);

fn endpoint(service: &str, instance: &str, protocol: Protocol) -> Arc<Endpoint> {
    Arc::new(Endpoint {
        service: service.into(),
        instance: instance.into(),
        node: NodeId::from_bytes([1; 16]),
        node_name: "far".to_owned(),
        zone: "z1".to_owned(),
        facts: Arc::default(),
        locality: 0,
        protocol,
        capacity: Capacity::new(10.0).unwrap(),
        capacity_source: CapacitySource::Declared,
        distance_ms: 12.5,
        distance_source: DistanceSource::Rtt,
        local: None,
        suspect: false,
        stats: Arc::new(EndpointStats::default()),
        via: std::sync::OnceLock::new(),
    })
}

fn view(name: &str, protocols: &[Protocol], out: Option<Protocol>) -> (String, Arc<ServiceView>) {
    let endpoints = protocols.iter().enumerate().map(|(n, protocol)| endpoint(name, &n.to_string(), *protocol));
    let excluded = out.map(|protocol| ExcludedEndpoint {
        instance: "out".to_owned(),
        node: "far".to_owned(),
        reason: "its node is dead".to_owned(),
        protocol: Some(protocol),
        facts: Arc::default(),
        missing: Missing::Yes,
    });
    let view = ServiceView {
        name: name.to_owned(),
        endpoints: endpoints.collect(),
        excluded: excluded.into_iter().collect(),
        active_clients: 1.0,
        stats: Arc::default(),
        fleet_share: None,
        placed: None,
    };
    (name.to_owned(), Arc::new(view))
}

const ROUTE: &str = "
apiVersion: marram.dev/v1
kind: HTTPRoute
metadata: { name: shop }
spec: { hostnames: [ shop.mesh, '*.shop.mesh', shop.example.org ], rules: [ { backendRefs: [ { name: hello } ] } ] }
";

fn snapshot() -> Snapshot {
    let here = Here {
        node: NodeId::from_bytes([9; 16]),
        name: "me".to_owned(),
        region: String::new(),
        zone: String::new(),
        mesh: "m".to_owned(),
    };
    let route = parse_documents(ROUTE, &policy::Limits::default()).unwrap();
    let place = Place { node_name: "me".to_owned(), region: String::new(), zone: String::new() };
    let table: RouteTable = compile(&route, &place, 0).table;
    let views = [
        view("hello", &[Protocol::Http], None),
        view("calls", &[Protocol::Http2], None),
        view("ill", &[], Some(Protocol::Http)),
        view("raw", &[Protocol::Tcp], None),
        view("db", &[Protocol::Tcp], None),
        view("ntp", &[Protocol::Udp], None),
        view("telemetry", &[Protocol::Udp], None),
        view("many", &[Protocol::Http; 40], None),
    ];
    Snapshot { version: 7, here, table: Arc::new(table), services: BTreeMap::from(views), local: HashMap::new() }
}

fn zone(has_virtual: bool) -> Zone {
    let mut config = Config::default();
    config.dns.virtual_addresses = has_virtual;
    for (service, address, protocol) in [
        ("db", "127.0.0.1:15432", ListenerProtocol::Tcp),
        ("db", "[::]:15433", ListenerProtocol::Tcp),
        ("ntp", "0.0.0.0:123", ListenerProtocol::Udp),
        ("later", "127.0.0.2:99", ListenerProtocol::Tcp),
    ] {
        config.listeners.push(ListenerConfig { service: service.into(), address: address.parse().unwrap(), protocol });
    }
    Zone::new(&config, &Arc::default())
}

fn said(zone: &Zone, name: &str) -> Said {
    let labels: Vec<String> = name.split('.').filter(|label| !label.is_empty()).map(str::to_owned).collect();
    match zone.look_up(&labels, &snapshot(), NOW) {
        Said::Name(records) => {
            Said::Name(records.into_iter().filter(|record| !matches!(record, Data::Txt(_))).collect())
        }
        other => other,
    }
}

fn a(text: &str) -> Data {
    Data::A(text.parse().unwrap())
}

fn srv(port: u16, target: &str) -> Data {
    Data::Srv { port, target: target.to_owned() }
}

#[test]
fn a_name_leads_to_the_listener_of_its_service_else_to_the_proxy_where_that_can_serve_it() {
    let zone = zone(false);
    let nothing = || Said::Name(Vec::new());
    for (name, expected) in [
        ("hello.mesh", Said::Name(vec![a("127.0.0.1"), srv(7080, "hello.mesh")])),
        ("calls.mesh", Said::Name(vec![a("127.0.0.1"), srv(7080, "calls.mesh")])),
        // All its instances are out, and its name stays.
        ("ill.mesh", Said::Name(vec![a("127.0.0.1"), srv(7080, "ill.mesh")])),
        (
            "db.mesh",
            Said::Name(vec![
                a("127.0.0.1"),
                Data::Aaaa("::1".parse().unwrap()),
                srv(15432, "db.mesh"),
                srv(15433, "db.mesh"),
            ]),
        ),
        ("ntp.mesh", Said::Name(vec![a("127.0.0.1"), srv(123, "ntp.mesh")])),
        // Nobody is known to offer it yet, but its listener is there.
        ("later.mesh", Said::Name(vec![a("127.0.0.2"), srv(99, "later.mesh")])),
        ("raw.mesh", nothing()),
        ("telemetry.mesh", nothing()),
        ("_udp.ntp.mesh", nothing()),
        ("_x._tcp.ntp.mesh", nothing()),
        ("_ntp._udp.ntp.mesh", Said::Name(vec![srv(123, "ntp.mesh")])),
        ("_http._tcp.hello.mesh", Said::Name(vec![srv(7080, "hello.mesh")])),
        ("_http._sctp.hello.mesh", Said::NoName),
        ("http._tcp.hello.mesh", Said::NoName),
        ("nobody.mesh", Said::NoName),
        ("x.hello.mesh", Said::NoName),
        // Hosts of routes.
        ("shop.mesh", Said::Name(vec![a("127.0.0.1"), srv(7080, "shop.mesh")])),
        ("eu.shop.mesh", Said::Name(vec![a("127.0.0.1"), srv(7080, "eu.shop.mesh")])),
        ("shop.example.org", Said::Outside),
        ("mesh", Said::Name(vec![Data::Soa, Data::Ns])),
        ("", Said::Outside),
        ("example.org", Said::Outside),
        ("hello.mesh.localhost", Said::Outside),
    ] {
        assert_eq!(said(&zone, name), expected, "{name}");
    }
}

#[test]
fn a_service_without_a_listener_has_an_address_of_its_own_where_that_is_wanted() {
    let zone = zone(true);
    let own = |name: &str| match said(&zone, name) {
        Said::Name(records) => match records.as_slice() {
            [Data::A(address)] => virtual_address::is_virtual(*address).then_some(*address),
            _ => None,
        },
        _ => None,
    };
    let (hello, raw) = (own("hello.mesh"), own("raw.mesh"));
    assert!(hello.is_some() && raw.is_some() && hello != raw, "{hello:?} {raw:?}");
    assert_eq!(said(&zone, "ntp.mesh"), Said::Name(vec![a("127.0.0.1"), srv(123, "ntp.mesh")]), "a listener is better");
    assert_eq!(said(&zone, "telemetry.mesh"), Said::Name(Vec::new()), "datagrams are not redirected");
}

#[test]
fn a_text_tells_each_candidate_and_its_probability() {
    let labels = ["hello".to_owned(), "mesh".to_owned()];
    let Said::Name(records) = zone(false).look_up(&labels, &snapshot(), NOW) else { panic!("no name") };
    assert!(
        records.contains(&Data::Txt("instance=0 node=far zone=z1 d=12.5ms C=10 P=1.000".to_owned())),
        "{records:?}"
    );
}

/// A query for one name and type, with what an asker says of extensions.
fn query(name: &str, rtype: Rtype, edns: Option<(u16, u8)>) -> Vec<u8> {
    let mut builder = MessageBuilder::new_vec();
    builder.header_mut().set_id(0x1234);
    builder.header_mut().set_rd(true);
    let mut question = builder.question();
    question.push((Name::vec_from_str(name).unwrap(), rtype)).unwrap();
    let mut additional = question.additional();
    if let Some((bytes, version)) = edns {
        let told = additional.opt(|opt| {
            opt.set_udp_payload_size(bytes);
            opt.set_version(version);
            Ok(())
        });
        told.unwrap();
    }
    additional.finish()
}

fn answered(query: &[u8], over: Over) -> Result<Vec<u8>, Dropped> {
    let (zone, snapshot) = (zone(false), snapshot());
    reply(query, over, snapshot.version, |name| zone.look_up(name, &snapshot, NOW)).map(|reply| reply.bytes)
}

fn texts(bytes: &[u8]) -> (Rcode, Vec<String>, Vec<String>) {
    let message = Message::from_octets(bytes).unwrap();
    assert!(message.header().qr() && message.header().id() == 0x1234 && message.header().rd());
    assert!(!message.header().ra(), "it asks nobody else");
    let section = |section: domain::base::message::RecordSection<'_, &[u8]>| -> Vec<String> {
        let records = section.limit_to::<AllRecordData<_, _>>();
        records.map(|record| record.unwrap()).map(|record| format!("{} {}", record.rtype(), record.data())).collect()
    };
    (message.header().rcode(), section(message.answer().unwrap()), section(message.authority().unwrap()))
}

#[test]
fn an_answer_has_what_was_asked_for_or_says_how_long_there_is_nothing() {
    const SOA: &str = "SOA localhost. nobody.invalid. 7 5 5 5 5";
    for (name, rtype, rcode, answer, authority) in [
        ("hello.mesh", Rtype::A, Rcode::NOERROR, &["A 127.0.0.1"][..], ""),
        ("HeLLo.Mesh", Rtype::A, Rcode::NOERROR, &["A 127.0.0.1"], ""),
        ("hello.mesh", Rtype::AAAA, Rcode::NOERROR, &[], SOA),
        ("db.mesh", Rtype::AAAA, Rcode::NOERROR, &["AAAA ::1"], ""),
        ("db.mesh", Rtype::SRV, Rcode::NOERROR, &["SRV 0 0 15432 db.mesh", "SRV 0 0 15433 db.mesh"], ""),
        ("db.mesh", Rtype::ANY, Rcode::NOERROR, &["A 127.0.0.1"], ""),
        ("hello.mesh", Rtype::MX, Rcode::NOERROR, &[], SOA),
        ("raw.mesh", Rtype::A, Rcode::NOERROR, &[], SOA),
        ("nobody.mesh", Rtype::A, Rcode::NXDOMAIN, &[], SOA),
        ("mesh", Rtype::SOA, Rcode::NOERROR, &[SOA], ""),
        ("mesh", Rtype::NS, Rcode::NOERROR, &["NS localhost."], ""),
        ("mesh", Rtype::AXFR, Rcode::REFUSED, &[], ""),
        ("example.org", Rtype::A, Rcode::REFUSED, &[], ""),
    ] {
        for over in [Over::Udp, Over::Tcp] {
            let bytes = answered(&query(name, rtype, None), over).unwrap();
            let (said, answers, authorities) = texts(&bytes);
            assert_eq!(
                (said, answers),
                (rcode, answer.iter().map(|text| (*text).to_owned()).collect()),
                "{name} {rtype}"
            );
            let expected: Vec<&str> = if authority.is_empty() { Vec::new() } else { vec![authority] };
            assert_eq!(authorities, expected, "{name} {rtype}");
        }
    }
}

#[test]
fn what_does_not_fit_into_one_datagram_is_asked_for_again_over_tcp() {
    for (edns, over, is_cut) in [
        (None, Over::Udp, true),
        (Some((100, 0)), Over::Udp, true),
        (Some((1232, 0)), Over::Udp, false),
        (Some((65_000, 0)), Over::Udp, false),
        (None, Over::Tcp, false),
    ] {
        let bytes = answered(&query("many.mesh", Rtype::TXT, edns), over).unwrap();
        let message = Message::from_octets(bytes.as_slice()).unwrap();
        assert_eq!(message.header().tc(), is_cut, "{edns:?} {over:?}: {} bytes", bytes.len());
        assert_eq!(message.header_counts().ancount(), if is_cut { 0 } else { 8 }, "{edns:?} {over:?}");
        assert_eq!(message.opt().is_some(), edns.is_some(), "{edns:?} {over:?}");
        assert!(over == Over::Tcp || bytes.len() <= if is_cut { 512 } else { 1232 }, "{} bytes", bytes.len());
    }
}

#[test]
fn what_is_no_plain_question_is_told_so_or_left_without_answer() {
    let good = query("hello.mesh", Rtype::A, None);
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    let rcode = |bytes: &[u8]| answered(bytes, Over::Udp).map(|bytes| Message::from_octets(bytes).unwrap().opt_rcode());
    assert_eq!(rcode(&good[..11]), Err(Dropped::Malformed));
    assert_eq!(rcode(&with(2, 0x81)), Err(Dropped::NotAQuery), "an answer");
    for (what, bytes, expected) in [
        ("a notify", with(2, 0x20), Rcode::NOTIMP),
        ("no question", with(5, 0), Rcode::FORMERR),
        ("two questions", with(5, 2), Rcode::FORMERR),
        ("a name that is cut", good[..20].to_vec(), Rcode::FORMERR),
        ("a name that points nowhere", with(12, 0xc0), Rcode::FORMERR),
        ("a name that points at itself", [&good[..12], &[0xc0, 12, 0, 1, 0, 1]].concat(), Rcode::FORMERR),
        ("another class", with(good.len() - 1, 3), Rcode::REFUSED),
    ] {
        assert_eq!(rcode(&bytes).map(OptRcode::rcode), Ok(expected), "{what}");
    }
    let newer = rcode(&query("hello.mesh", Rtype::A, Some((1232, 1))));
    assert_eq!(newer, Ok(OptRcode::BADVERS));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic_and_no_answer_is_longer_than_it_may_be(
        bytes in prop::collection::vec(any::<u8>(), 0..600),
    ) {
        check(&bytes);
    }

    #[test]
    fn nor_do_changed_queries(
        name in prop::sample::select(vec!["hello.mesh", "many.mesh", "_http._tcp.db.mesh", "a.b.c.d.shop.mesh", "."]),
        rtype in any::<u16>(),
        edns in prop::option::of((any::<u16>(), 0_u8..3)),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = query(name, Rtype::from_int(rtype), edns);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let length = cut.map_or(bytes.len(), |cut| cut.index(bytes.len() + 1));
        check(&bytes[..length]);
    }
}

fn check(bytes: &[u8]) {
    for (over, most) in [(Over::Udp, 1232), (Over::Tcp, 65_535)] {
        if let Ok(answer) = answered(bytes, over) {
            assert!((12..=most).contains(&answer.len()), "{} bytes over {over:?}", answer.len());
            assert!(Message::from_octets(answer.as_slice()).unwrap().header().qr());
        }
    }
}
