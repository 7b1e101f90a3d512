//! How traffic gets into a waypoint that does not end tunnels itself.

use isobar_types::labels;

use super::{Gateway, GatewayClass};
use crate::object::ObjectHead;
use crate::set::ObjectSet;

/// What an inbound binding says: `NONE` or `PROXY`, each with `/PORT` where one is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InboundBinding {
    /// Each connection begins with a PROXY protocol header.
    pub proxy_protocol: bool,
    /// The waypoint's port; that which was called when absent.
    pub port: Option<u16>,
}

impl InboundBinding {
    /// Reads the value of the annotation.
    ///
    /// # Errors
    /// A sentence, for anything else.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || {
            let shown: String = text.chars().take(60).collect();
            format!("{shown:?} is neither NONE nor PROXY, with /PORT where one is meant")
        };
        let (word, port) = match text.split_once('/') {
            None => (text, None),
            Some((word, port)) => {
                let port = port.parse().ok().filter(|port| *port != 0);
                (word, Some(port.ok_or_else(wrong)?))
            }
        };
        let proxy_protocol = match word {
            "PROXY" => true,
            "NONE" => false,
            _ => return Err(wrong()),
        };
        Ok(Self {
            proxy_protocol,
            port,
        })
    }

    /// That of a Gateway: its own, else its class's. One that cannot be read is none.
    #[must_use]
    pub fn of(gateway: &Gateway, set: &ObjectSet) -> Option<Self> {
        let class = || -> Option<&GatewayClass> {
            let held = set
                .gateway_classes
                .get("", &gateway.spec.gateway_class_name);
            held.map(|held| &held.object)
        };
        let own = gateway.annotation(labels::INBOUND_BINDING);
        let text = own.or_else(|| class()?.annotation(labels::INBOUND_BINDING))?;
        Self::parse(text).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binding_is_a_word_and_perhaps_a_port() {
        let of = |proxy_protocol, port| {
            Ok(InboundBinding {
                proxy_protocol,
                port,
            })
        };
        assert_eq!(InboundBinding::parse("PROXY"), of(true, None));
        assert_eq!(InboundBinding::parse("PROXY/15088"), of(true, Some(15088)));
        assert_eq!(InboundBinding::parse("NONE"), of(false, None));
        assert_eq!(InboundBinding::parse("NONE/80"), of(false, Some(80)));
        for wrong in [
            "",
            "proxy",
            "PROXY/",
            "PROXY/0",
            "PROXY/65536",
            "HBONE/1",
            "PROXY/1/2",
        ] {
            let said = InboundBinding::parse(wrong).unwrap_err();
            assert!(said.contains("neither NONE nor PROXY"), "{said}");
        }
    }
}
