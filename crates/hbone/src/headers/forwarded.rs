use std::fmt;
use std::net::{IpAddr, SocketAddr};

use isobar_types::AddressText;

/// Longest host that is taken, in bytes (RFC 1035 section 2.3.4): it is held for as long as the connection
/// lives, and whoever calls may have thousands of those.
const MOST_HOST: usize = 253;

/// The caller as the sending proxy saw it, and the host it asked for. Unauthenticated: never for
/// policy, never as a source address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forwarded {
    /// The caller's address.
    pub client: Option<SocketAddr>,
    /// The known service's host name.
    pub host: Option<String>,
}

impl Forwarded {
    /// Reads the first element of a `Forwarded` header (RFC 7239); parts that cannot be read are
    /// absent, and so is a host longer than any name. `None` when neither part is there.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let first = text.split(',').next()?;
        let mut found = Self {
            client: None,
            host: None,
        };
        for pair in first.split(';') {
            let Some((key, value)) = pair.split_once('=') else {
                continue;
            };
            let value = unquote(value.trim());
            if value.is_empty() {
                continue;
            }
            let key = key.trim();
            if key.eq_ignore_ascii_case("for") {
                found.client = address(value);
            } else if key.eq_ignore_ascii_case("host") && value.len() <= MOST_HOST {
                found.host = Some(value.to_owned());
            }
        }
        (found.client.is_some() || found.host.is_some()).then_some(found)
    }
}

fn unquote(value: &str) -> &str {
    value
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'))
        .unwrap_or(value)
}

/// With or without a port; without one it is 0.
fn address(text: &str) -> Option<SocketAddr> {
    let ip_only = || {
        let bare = text
            .strip_prefix('[')
            .and_then(|t| t.strip_suffix(']'))
            .unwrap_or(text);
        bare.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, 0))
    };
    let found = text.parse::<SocketAddr>().ok().or_else(ip_only)?;
    Some(SocketAddr::new(found.ip().to_canonical(), found.port()))
}

impl fmt::Display for Forwarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(client) = self.client {
            f.write_str("for=\"")?;
            f.write_str(AddressText::from(client).as_str())?;
            f.write_str("\"")?;
        }
        if let Some(host) = &self.host {
            f.write_str(if self.client.is_some() {
                ";host="
            } else {
                "host="
            })?;
            f.write_str(host)?;
        }
        Ok(())
    }
}
