//! The API over real sockets, with a node that is made up.

mod fake;
mod reads;
mod refusals;
mod watch;
mod writes;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;
use utoipa::OpenApi as _;

use super::{Code, DESCRIPTION, Description, ROUTES};

fn documentation() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/admin-api.md");
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn description() -> Value {
    serde_json::from_str(DESCRIPTION).unwrap()
}

#[test]
fn the_description_is_what_the_handlers_say_of_themselves() {
    // A line for each part, so that a change of one is a change of few lines.
    let today = Description::openapi().to_json().unwrap().replace("},\"", "},\n\"") + "\n";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.json");
    if std::env::var_os("MARRAM_WRITE_OPENAPI").is_some() {
        fs::write(&path, &today).unwrap();
        return;
    }
    let differs = today.lines().zip(DESCRIPTION.lines()).find(|(today, kept)| today != kept);
    assert!(
        today == DESCRIPTION,
        "node/openapi.json is not what the handlers say; first that differs: {differs:#?}\n\
         If they are right, write it anew: MARRAM_WRITE_OPENAPI=1 cargo test -p node --lib description"
    );
}

#[test]
fn every_route_is_documented_and_every_documented_route_exists() {
    let description = description();
    let mut routes = BTreeSet::new();
    for (path, operations) in description["paths"].as_object().unwrap() {
        for method in operations.as_object().unwrap().keys().filter(|key| *key != "parameters") {
            routes.insert(format!("{} {path}", method.to_uppercase()));
        }
    }
    let mut served = BTreeSet::new();
    for (method, path, handler) in ROUTES {
        assert_eq!(description["paths"][path][method]["operationId"], *handler, "{method} {path}");
        served.insert(format!("{} {path}", method.to_uppercase()));
    }
    assert_eq!(served, routes);
    let text = documentation();
    let documented: BTreeSet<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .filter_map(|line| line.split_once('`'))
        .map(|(route, _)| route.to_owned())
        .filter(|route| route.contains(" /"))
        .collect();
    assert_eq!(routes, documented);
}

#[test]
fn every_code_is_documented_with_its_status() {
    let text = documentation();
    for code in Code::ALL {
        let line = format!("| `{}` | {} |", code.as_str(), code.status().as_u16());
        assert!(text.contains(&line), "docs/admin-api.md has no line `{line}`");
    }
}

#[test]
fn the_description_names_every_answer_and_every_schema_it_refers_to() {
    let description = description();
    let text = description.to_string();
    let schemas = description["components"]["schemas"].as_object().unwrap();
    for reference in text.split("#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(schemas.contains_key(name), "{name} is not described");
    }
    for (path, operations) in description["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            assert!(operation["summary"].is_string() || operation["description"].is_string(), "{method} {path}");
            assert!(!operation["responses"].as_object().unwrap().is_empty(), "{method} {path}");
        }
    }
    assert!(description["openapi"].as_str().unwrap().starts_with("3.1"));
}

#[test]
fn the_description_of_an_explanation_has_the_fields_that_are_answered() {
    let description = description();
    let answered = serde_json::to_value(fake::explanation()).unwrap();
    let schemas = &description["components"]["schemas"];
    for (schema, value) in [
        ("Explanation", &answered),
        ("ExplainedCandidate", &answered["candidates"][0]),
        ("ExplainedLocality", &answered["localities"][0]),
        ("ExplainedFleetRate", &answered["fleet_rate"]),
        ("ExplainedRequirements", &answered["requirements"][0]),
        ("Excluded", &answered["excluded"][0]),
    ] {
        let described: BTreeSet<&String> = schemas[schema]["properties"].as_object().unwrap().keys().collect();
        let answered: BTreeSet<&String> = value.as_object().unwrap().keys().collect();
        assert_eq!(described, answered, "{schema}");
    }
}
