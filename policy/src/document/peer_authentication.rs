//! The spec of `PeerAuthentication`: whether connections to a service must prove who they are.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::fields::Fields;
use crate::problem::Faults;

/// Whether connections to a service are mutually authenticated; the later, the stricter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum PeerMode {
    /// Plain connections only.
    Disable,
    /// Plain connections as well as mutual TLS.
    Permissive,
    /// Mutual TLS only.
    Strict,
}

impl fmt::Display for PeerMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Disable => "DISABLE",
            Self::Permissive => "PERMISSIVE",
            Self::Strict => "STRICT",
        })
    }
}

/// Reads the spec at `spec`; `None` only with a fault.
pub(crate) fn read(spec: &Value, faults: &mut Faults<'_>) -> Option<PeerMode> {
    let hint = "write `mtls: { mode: STRICT }`";
    let fields = Fields::open(spec, "spec", &["mtls"], faults)?;
    let mtls = fields.require("mtls", hint, faults)?;
    let mtls = Fields::open(mtls, &fields.at("mtls"), &["mode"], faults)?;
    mtls.require("mode", hint, faults)?;
    mtls.word("mode", &MODES, &["UNSET"], faults)
}

const MODES: [(&str, PeerMode); 3] =
    [("DISABLE", PeerMode::Disable), ("PERMISSIVE", PeerMode::Permissive), ("STRICT", PeerMode::Strict)];
