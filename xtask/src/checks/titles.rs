//! What each row of the lists is about.

/// The conformance checks of the node proxy.
pub(super) const CHECKS: [(usize, &str); 50] = [
    (1, "ZDS: the hello is one packet, 08 01"),
    (2, "ZDS: a deletion's uid is field 2, field 1 is not read"),
    (
        3,
        "ZDS: a pod added twice in one namespace is not bound twice",
    ),
    (4, "ZDS: a pod added in another namespace moves there"),
    (5, "ZDS: a pod missing in the snapshot is drained at once"),
    (
        6,
        "ZDS: the agent goes away: pods live, not ready, connects again",
    ),
    (
        7,
        "ZDS: a port taken, then free: refused, tried again, ready",
    ),
    (8, "xDS: one bad resource among good ones in the first push"),
    (
        9,
        "xDS: a reconnect names the versions held, and none refused",
    ),
    (
        10,
        "state: a service before or after its workloads is the same",
    ),
    (11, "state: unhealthy endpoints by health policy"),
    (12, "state: an address shared by services of two namespaces"),
    (13, "state: a service visible in its namespace only"),
    (
        14,
        "outbound: a waypoint that cannot be resolved fails, never direct",
    ),
    (
        15,
        "outbound: a pod's waypoint, and the same call from the waypoint",
    ),
    (
        16,
        "outbound: the waypoint of a pod behind a service is not used",
    ),
    (
        17,
        "outbound: weighted waypoints share as their weights say",
    ),
    (18, "outbound: a passthrough service keeps the destination"),
    (
        19,
        "outbound: a service without endpoint fails, never passes through",
    ),
    (20, "outbound: a named port is each endpoint's own number"),
    (
        21,
        "outbound: ranks of failover over network, region and zone",
    ),
    (22, "outbound: families of a dual-stack service"),
    (23, "inbound: an authority that is not this pod: 400"),
    (24, "inbound: an authority with a reserved port: 503"),
    (25, "inbound: a host name with an unknown port: 503"),
    (26, "inbound: a denial: 401, the text, the flag DENY"),
    (27, "inbound: nobody listens: 503, the flag CONNECT"),
    (28, "inbound: another method than CONNECT: 400"),
    (29, "TLS: a client of a foreign trust domain is refused"),
    (
        30,
        "TLS: a server with an unexpected identity is refused, no fallback",
    ),
    (31, "HBONE: each direction of a stream ends by itself"),
    (32, "HBONE: more streams than one tunnel takes open another"),
    (33, "HBONE: a peer's stream limit does not stall"),
    (
        34,
        "HBONE: a silent peer meets our time limits, others do not wait",
    ),
    (
        35,
        "HBONE: a tunnel killed while idle does not hurt the next call",
    ),
    (
        36,
        "HBONE: GOAWAY: open streams finish, new ones take a new tunnel",
    ),
    (37, "policy: a new denial cuts a live connection and tells"),
    (38, "policy: the table of matches, empty ones included"),
    (
        39,
        "policy: no identity and a denial of everyone without one",
    ),
    (40, "delivery: the application sees the client's address"),
    (41, "delivery: bytes of the PROXY header"),
    (42, "HBONE: two layers across networks"),
    (43, "certificates: renewed at half life, used until expiry"),
    (44, "certificates: changed roots of the authority are used"),
    (45, "DNS: each rule of answering, finding and forwarding"),
    (46, "upgrade: old and new process on one pod refuse nobody"),
    (
        47,
        "drain: SIGTERM with open streams: GOAWAY, deadline, exit",
    ),
    (48, "admin: pages and dump in the shape istioctl reads"),
    (49, "metrics: the series the ztunnel dashboard asks for"),
    (50, "HBONE: malformed telemetry headers are ignored"),
];

/// The reliability bars of the node proxy.
pub(super) const BARS: [(usize, &str); 18] = [
    (1, "no new connection is lost while the process is replaced"),
    (2, "what can finish while draining is not cut"),
    (3, "what must be cut sees an orderly end"),
    (5, "authority away: certificates serve to their end"),
    (7, "memory a stranger makes us hold"),
    (8, "memory a hostile peer makes us hold"),
    (10, "memory of an idle tunnel and connection"),
    (11, "out of descriptors"),
    (13, "descriptors come back"),
    (14, "a dead peer is noticed"),
    (16, "authorities a caller must not reach (confused deputy)"),
    (17, "certificates that must be refused"),
    (18, "a new DENY cuts what is open"),
    (19, "hostile configuration"),
    (20, "a panic ends one stream"),
    (21, "interactive tunnels survive the guards"),
    (22, "recovery after a kill"),
    (26, "hostile and too many log lines"),
];
