//! The SPIFFE name a leaf carries.

use std::fmt;

use super::name::check_node_name;
use crate::id::NodeId;

/// Who a leaf speaks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// `spiffe://MESH/node/NODEID`: the node itself.
    Node(NodeId),
    /// `spiffe://MESH/ns/NAMESPACE/svc/NAME`: a service that runs at the issuing node.
    Service {
        /// The namespace.
        namespace: String,
        /// The service.
        name: String,
    },
}

impl Subject {
    /// Reads the URI of a leaf; `None` when it is not one of the two forms in this mesh, spelled the one way.
    pub(crate) fn parse(mesh: &str, uri: &str) -> Option<Self> {
        let path = uri.strip_prefix("spiffe://")?.strip_prefix(mesh)?.strip_prefix('/')?;
        let parts: Vec<&str> = path.splitn(5, '/').collect();
        match parts.as_slice() {
            ["node", id] => Some(Self::Node(id.parse().ok()?)),
            ["ns", namespace, "svc", name] => {
                check_node_name(namespace).ok()?;
                check_node_name(name).ok()?;
                Some(Self::Service { namespace: (*namespace).to_owned(), name: (*name).to_owned() })
            }
            _ => None,
        }
    }

    /// The URI of this subject in a mesh.
    pub(crate) fn uri(&self, mesh: &str) -> String {
        format!("spiffe://{mesh}/{self}")
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(id) => write!(f, "node/{id}"),
            Self::Service { namespace, name } => write!(f, "ns/{namespace}/svc/{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_have_one_spelling() {
        let id = NodeId::from_public_key(&[1; 32]);
        let service = Subject::Service { namespace: "default".to_owned(), name: "web".to_owned() };
        for subject in [Subject::Node(id), service] {
            assert_eq!(Subject::parse("garden", &subject.uri("garden")), Some(subject));
        }
        let wrong = [
            format!("spiffe://orchard/node/{id}"),
            format!("spiffe://garden.evil/node/{id}"),
            format!("spiffe://garden/node/{id}/x"),
            format!("spiffe://garden/node/{}", id.to_string().to_uppercase()),
            format!("SPIFFE://garden/node/{id}"),
            format!("spiffe://garden/node/{id}?x"),
            "spiffe://garden/ns/a/svc/b/c".to_owned(),
            "spiffe://garden/ns//svc/b".to_owned(),
            "spiffe://garden".to_owned(),
            String::new(),
        ];
        for uri in wrong {
            assert_eq!(Subject::parse("garden", &uri), None, "{uri}");
        }
    }
}
