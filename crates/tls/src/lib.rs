//! TLS, SPIFFE verification, certificate requests, the signing half of the CA, bound tokens.
