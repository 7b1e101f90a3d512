use rustls::server::Acceptor;

/// What the first bytes of a stream tell of TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hello {
    /// No client of TLS begins like this.
    Other,
    /// More bytes have to come.
    Part,
    /// A whole client hello, with the server name it asks for.
    Whole(Option<String>),
}

impl Hello {
    /// A hello that is longer is not waited for.
    pub const MOST: usize = 16 * 1024;

    /// Looks at the first bytes of a stream.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Self {
        match bytes {
            [] | [22] => return Self::Part,
            [22, 3, ..] => {}
            _ => return Self::Other,
        }
        let mut acceptor = Acceptor::default();
        let mut rest = bytes;
        while !rest.is_empty() {
            if !matches!(acceptor.read_tls(&mut rest), Ok(read) if read > 0) {
                return Self::Other;
            }
            match acceptor.accept() {
                Ok(None) => {}
                Ok(Some(accepted)) => {
                    let name = accepted.client_hello().server_name().map(str::to_owned);
                    return Self::Whole(name);
                }
                Err(_) => return Self::Other,
            }
        }
        if bytes.len() > Self::MOST {
            return Self::Other;
        }
        Self::Part
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::{ClientConfig, ClientConnection, RootCertStore};

    use super::Hello;

    fn hello(name: &str) -> Vec<u8> {
        let config = ClientConfig::builder_with_provider(crate::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let name = name.to_owned().try_into().unwrap();
        let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_hello_tells_its_server_name_once_it_is_whole() {
        let bytes = hello("db.shop.example");
        let whole = Hello::Whole(Some("db.shop.example".into()));
        assert_eq!(Hello::read(&bytes), whole);
        for end in 0..bytes.len() {
            assert_eq!(Hello::read(&bytes[..end]), Hello::Part, "{end}");
        }
        let mut more = bytes;
        more.extend_from_slice(b"data");
        assert_eq!(Hello::read(&more), whole);
        assert_eq!(Hello::read(&hello("10.0.0.1")), Hello::Whole(None));
    }

    #[test]
    fn other_bytes_are_no_hello() {
        for bytes in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"\x16\x01",
            b"\x16\x03\x01\x00\x04\x02\x00\x00\x00",
            b"\x16\x03\x01\xff\xff\x01",
            b"\x16\x03\x01\x00\x04\x01\x00\x00\x00",
        ] {
            assert_eq!(Hello::read(bytes), Hello::Other, "{bytes:?}");
        }
        let mut endless = vec![22, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff];
        endless.resize(Hello::MOST + 9, 0);
        assert_eq!(Hello::read(&endless), Hello::Other);
    }
}
