use super::*;

fn parse(variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    Environment::new(variables.iter().copied(), 8).parse()
}

#[test]
fn defaults_are_istios() {
    let config = parse(&[]).unwrap();
    assert_eq!(config.mode, Mode::Shared);
    assert_eq!(config.packet_mark, Some(1337));
    assert_eq!(config.ca.address, "https://localhost:15012");
    assert_eq!(config.worker_threads, 2);
    assert_eq!(config.drain, Duration::from_secs(5));
    assert_eq!(config.cluster_id, "Kubernetes");
    assert_eq!(
        config.zds_socket,
        PathBuf::from("/var/run/ztunnel/ztunnel.sock")
    );
    assert_eq!(
        config.dns.unwrap().listen,
        "127.0.0.1:15053".parse().unwrap()
    );
    assert!(config.original_source.is_none() && config.ipv6);
}

#[test]
fn addresses_get_a_scheme_and_an_empty_one_disables_xds() {
    let config = parse(&[
        ("XDS_ADDRESS", "istiod:15012"),
        ("CA_ADDRESS", "https://ca:1"),
    ])
    .unwrap();
    assert_eq!(config.xds.unwrap().address, "https://istiod:15012");
    assert_eq!(config.ca.address, "https://ca:1");
    assert!(parse(&[("XDS_ADDRESS", "")]).unwrap().xds.is_none());
    let kubernetes = parse(&[("KUBERNETES_SERVICE_HOST", "10.0.0.1")]).unwrap();
    assert_eq!(
        kubernetes.ca.address,
        "https://istiod.istio-system.svc:15012"
    );
    let proxy = parse(&[("PROXY_CONFIG", "{discoveryAddress: 'd:1', statsPort: 7}")]).unwrap();
    assert_eq!(proxy.ca.address, "https://d:1");
    assert_eq!(proxy.ports.metrics, 7);
}

#[test]
fn bad_values_name_their_variable() {
    for (variable, value) in [
        ("IPV6_ENABLED", "yes"),
        ("PROXY_MODE", "sidecar"),
        ("PACKET_MARK", "x"),
        ("SECRET_TTL", "5"),
        ("SECRET_TTL", "5y"),
        ("INSTANCE_IP", "host"),
        ("ZTUNNEL_WORKER_THREADS", "101%"),
        ("ZTUNNEL_RESOURCE_CPU_LIMIT", "0"),
        ("XDS_ADDRESS", "http://plain:15010"),
        ("CA_ADDRESS", ""),
        ("DNS_PROXY_ADDR", "nowhere"),
        ("PROXY_CONFIG", "{statsPort: many}"),
        ("UNSTABLE_ENABLE_SOCKS5", "on"),
        ("LOCAL_XDS", "{workload: []}"),
        ("LOCAL_XDS_PATH", "/nowhere/mesh.yaml"),
        ("TLS12_ENABLED", "yes"),
        ("COMPLIANCE_POLICY", "fips-140-2"),
    ] {
        let error = parse(&[(variable, value)]).unwrap_err().to_string();
        assert!(error.contains(variable), "{variable}={value}: {error}");
    }
}

#[test]
fn local_objects_come_from_one_place_and_socks_from_a_switch() {
    let mesh = "workloads: [{uid: u, name: p, namespace: n, workloadIps: [10.0.0.1]}]";
    let config = parse(&[("LOCAL_XDS", mesh), ("UNSTABLE_ENABLE_SOCKS5", "true")]).unwrap();
    assert_eq!(config.local.workloads[0].uid, "u");
    assert!(config.ports.is_reserved(15080) && config.ports.is_reserved(15008));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), mesh).unwrap();
    let path = ("LOCAL_XDS_PATH", file.path().to_str().unwrap());
    assert_eq!(parse(&[path]).unwrap().local, config.local);
    let error = parse(&[path, ("LOCAL_XDS", mesh)]).unwrap_err().to_string();
    assert!(error.contains("one of the two"), "{error}");
    let plain = parse(&[]).unwrap();
    assert!(plain.local.is_empty() && !plain.ports.is_reserved(15080));
}

#[test]
fn the_process_has_a_pod_of_its_own_if_it_was_told() {
    let all = [
        ("POD_NAME", "z"),
        ("POD_NAMESPACE", "istio-system"),
        ("SERVICE_ACCOUNT", "ztunnel"),
    ];
    assert_eq!(parse(&all).unwrap().own_pod().unwrap().name, "z");
    assert!(parse(&all[..2]).unwrap().own_pod().is_none());
    let mut dedicated = all.to_vec();
    dedicated.extend([
        ("PROXY_MODE", "dedicated"),
        ("PROXY_WORKLOAD_INFO", "a/b/c"),
    ]);
    assert!(parse(&dedicated).unwrap().own_pod().is_none());
}

#[test]
fn dedicated_mode_needs_its_workload() {
    let dedicated = ("PROXY_MODE", "dedicated");
    let error = parse(&[dedicated]).unwrap_err().to_string();
    assert!(error.contains("PROXY_WORKLOAD_INFO"), "{error}");
    for bad in ["a/b", "a/b/c/d", "a//c"] {
        assert!(
            parse(&[dedicated, ("PROXY_WORKLOAD_INFO", bad)]).is_err(),
            "{bad}"
        );
    }
    let config = parse(&[dedicated, ("PROXY_WORKLOAD_INFO", "ns/pod/account")]).unwrap();
    assert_eq!(config.packet_mark, None);
    let Mode::Dedicated {
        name,
        namespace,
        service_account,
    } = config.mode
    else {
        panic!("{:?}", config.mode)
    };
    assert_eq!(
        (&*namespace, &*name, &*service_account),
        ("ns", "pod", "account")
    );
}

#[test]
fn drain_is_derived_from_the_grace_period() {
    for (grace, seconds) in [("30", 25), ("11", 6), ("10", 9), ("1", 1), ("0", 1)] {
        let config = parse(&[("TERMINATION_GRACE_PERIOD_SECONDS", grace)]).unwrap();
        assert_eq!(config.drain, Duration::from_secs(seconds), "{grace}");
    }
    let both = [
        ("TERMINATION_GRACE_PERIOD_SECONDS", "30"),
        ("CONNECTION_TERMINATION_DEADLINE", "1m30s"),
    ];
    assert_eq!(parse(&both).unwrap().drain, Duration::from_secs(90));
}

#[test]
fn worker_threads_follow_limits_and_wishes() {
    let threads = |variables: &[(&str, &str)]| parse(variables).unwrap().worker_threads;
    assert_eq!(threads(&[("ZTUNNEL_WORKER_THREADS", "0")]), 8);
    assert_eq!(threads(&[("ZTUNNEL_WORKER_THREADS", "30%")]), 3);
    assert_eq!(threads(&[("ZTUNNEL_WORKER_THREADS", "5")]), 5);
    assert_eq!(threads(&[("ZTUNNEL_RESOURCE_CPU_LIMIT", "2500m")]), 3);
    assert_eq!(threads(&[("ZTUNNEL_RESOURCE_CPU_REQUEST", "4")]), 4);
    assert_eq!(threads(&[("ZTUNNEL_CPU_LIMIT", "16")]), 4);
    assert_eq!(threads(&[("PROXY_CONFIG", "{concurrency: 0}")]), 8);
}

#[test]
fn metadata_comes_from_three_places() {
    let config = parse(&[
        (
            "PROXY_CONFIG",
            "{proxyMetadata: {ISTIO_META_A: one, B: two, DNS_CAPTURE: 'false'}}",
        ),
        ("ISTIO_META_A", "three"),
        ("ISTIO_METAJSON_C", "{\"x\":1}"),
        ("ISTIO_METAJSON_D", "{"),
        ("ISTIO_META_CLUSTER_ID", "east"),
        ("CLUSTER_ID", "west"),
    ])
    .unwrap();
    assert_eq!(config.metadata["A"], "three");
    assert_eq!(config.metadata["B"], "two");
    assert_eq!(config.metadata["C"]["x"], 1);
    assert!(!config.metadata.contains_key("D"));
    assert_eq!(config.cluster_id, "east");
    assert!(config.dns.is_none());
}

#[test]
fn node_id_has_four_parts() {
    let config = parse(&[
        ("POD_NAME", "ztunnel-x"),
        ("POD_NAMESPACE", "istio-system"),
        ("INSTANCE_IP", "10.1.2.3"),
    ])
    .unwrap();
    assert_eq!(
        config.node_id(),
        "ztunnel~10.1.2.3~ztunnel-x.istio-system~istio-system.svc.cluster.local"
    );
}

#[test]
fn on_demand_excludes_answering_names() {
    let with = |pairs: &[(&str, &str)]| Environment::new(pairs.iter().copied(), 1).parse();
    assert!(!with(&[]).unwrap().on_demand);
    let refused = with(&[("XDS_ON_DEMAND", "true")]).unwrap_err();
    assert!(refused.to_string().contains("DNS_CAPTURE"), "{refused}");
    let both = [("XDS_ON_DEMAND", "true"), ("DNS_CAPTURE", "false")];
    assert!(with(&both).unwrap().on_demand);
}

#[test]
fn tls_follows_its_switches() {
    let of = |pairs: &[(&str, &str)]| parse(pairs).unwrap();
    assert_eq!(of(&[]).tls, Tls::default());
    let older = of(&[("TLS12_ENABLED", "true")]).tls;
    assert!(older.tls12 && !older.post_quantum_only);
    let hybrid = of(&[("COMPLIANCE_POLICY", "pqc")]).tls;
    assert!(hybrid.post_quantum_only && !hybrid.tls12);
    let system = of(&[("XDS_ROOT_CA", "SYSTEM")]).xds.unwrap().roots;
    assert_eq!(system, RootSource::System);
}
