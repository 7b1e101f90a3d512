//! The fields, by kind. A row says which tests show a field; whether it is honoured follows from the
//! gaps in `support`. Regenerate the page with `cargo run -p xtask -- features --write`.

use super::features::Row;

const fn row(
    field: &'static str,
    priority: char,
    means: &'static str,
    shown_by: &'static [&'static str],
) -> Row {
    Row {
        field,
        priority,
        means,
        shown_by,
        note: "",
        applies: true,
    }
}

impl Row {
    const fn but(mut self, note: &'static str) -> Self {
        self.note = note;
        self
    }

    const fn not_here(mut self, why: &'static str) -> Self {
        self.note = why;
        self.applies = false;
        self
    }
}

// One row a line, however long.
#[rustfmt::skip]
pub(super) const VIRTUAL_SERVICE: &[Row] = &[
    row("hosts", 'A', "The services the rules are about; short names are of the object's namespace", &["short_names_resolve_in_their_namespace", "match/hosts of another service do not count"]),
    row("gateways", 'A', "Where the rules count; `mesh` is meant where nothing is said", &["s060_a_gateway_serves_its_hosts_on_port_30000_of_every_node", "rules_for_other_gateways_are_not_for_this_one"]),
    row("exportTo", 'B', "Namespaces that may use the rules", &["objects_are_there_for_the_namespaces_they_name"]),
    row("http", 'A', "Rules for requests, the first that matches counts", &["match/blocks and order"]),
    row("tls", 'B', "Rules for TLS that is not ended here, by server name", &["tls_goes_where_its_server_name_says"]),
    row("tcp", 'A', "Rules for opaque connections", &["opaque_bytes_pass_both_ways_also_when_the_server_speaks_first"]),
    row("http[].name", 'A', "Name of a rule in logs", &["the_first_rule_that_matches_wins"]),
    row("http[].match", 'A', "Blocks of which one must hold", &["match/blocks and order"]),
    row("http[].route", 'A', "Destinations with weights", &["send/weights"]),
    row("http[].redirect", 'A', "Answers with a redirect", &["change/redirect"]),
    row("http[].directResponse", 'A', "Answers with a fixed status and body", &["change/direct response"]),
    row("http[].delegate", 'B', "Hands over to another VirtualService", &["a_rule_hands_over_to_the_rules_of_another_object"]),
    row("http[].rewrite", 'A', "Changes path or authority on the way", &["change/rewrite the prefix"]),
    row("http[].timeout", 'A', "Limit for the whole exchange", &["send/timeouts"]),
    row("http[].retries", 'A', "When and how often to try again", &["send/retries by status"]),
    row("http[].fault", 'A', "Faults that are put in", &["send/faults"]),
    row("http[].mirror", 'A', "Copies requests to one destination", &["traffic/mirrors", "mirrors_get_copies_that_nobody_waits_for"]),
    row("http[].mirrors", 'A', "Copies requests to several destinations", &["traffic/mirrors"]),
    row("http[].mirrorPercentage", 'A', "Share that `mirror` copies", &["traffic/mirrors"]),
    row("http[].mirrorPercent", 'C', "The same in its old form", &["traffic/mirrors"]),
    row("http[].corsPolicy", 'B', "Cross-origin rules", &["cors/cors"]),
    row("http[].headers", 'A', "Header edits of a rule", &["change/headers of the request", "change/headers of the response"]),
    row("http[].match[].name", 'B', "Name of a block in logs", &["the_first_rule_that_matches_wins"]),
    row("http[].match[].uri", 'A', "Path: equal, beginning or pattern", &["match/uri exact", "match/uri prefix", "match/uri regex"]),
    row("http[].match[].scheme", 'B', "`http` or `https`", &["match/scheme"]),
    row("http[].match[].method", 'A', "Method", &["match/method"]),
    row("http[].match[].authority", 'A', "Host of the request", &["match/authority"]),
    row("http[].match[].headers", 'A', "Headers that must be", &["match/headers"]),
    row("http[].match[].withoutHeaders", 'A', "Headers that must not be", &["match/without headers"]),
    row("http[].match[].queryParams", 'A', "Query parameters", &["match/query parameters"]),
    row("http[].match[].ignoreUriCase", 'B', "Case of the path does not count", &["match/uri without case"]),
    row("http[].match[].port", 'A', "Port of the service", &["match/port", "match/one port only"]),
    row("http[].match[].sourceLabels", 'A', "Labels of the calling pod", &["match/source"]),
    row("http[].match[].sourceNamespace", 'A', "Namespace of the caller's certificate", &["match/source"]),
    row("http[].match[].gateways", 'B', "Where the block counts", &["traffic/gateways"]),
    row("http[].match[].statPrefix", 'C', "Prefix of statistics", &["header_values_are_made_of_caller_request_and_reply"]),
    row("http[].route[].destination.host", 'A', "The service", &["send/destinations"]),
    row("http[].route[].destination.subset", 'A', "A subset of its endpoints", &["send/subsets"]),
    row("http[].route[].destination.port", 'A', "Its port; its only one where nothing is said", &["send/destinations"]),
    row("http[].route[].weight", 'A', "Share of requests", &["send/weights"]),
    row("http[].route[].headers", 'A', "Header edits for one destination", &["change/headers of the request", "change/headers of the response"]),
    row("http[].headers.request", 'A', "set, add, remove on requests", &["change/headers of the request", "change/header values made of what is known"]),
    row("http[].headers.response", 'A', "set, add, remove on responses", &["change/headers of the response", "change/header values made of what is known"]),
    row("http[].redirect.uri", 'A', "New path", &["change/redirect"]),
    row("http[].redirect.prefixRewrite", 'B', "New beginning of the path", &["traffic/redirect with a prefix"]),
    row("http[].redirect.authority", 'A', "New host", &["change/redirect"]),
    row("http[].redirect.port", 'B', "New port", &["change/redirect"]),
    row("http[].redirect.derivePort", 'B', "Port of the scheme or of the request", &["traffic/redirect with a prefix"]),
    row("http[].redirect.scheme", 'A', "New scheme", &["change/redirect"]),
    row("http[].redirect.redirectCode", 'A', "301, 302, 303, 307 or 308", &["change/redirect"]),
    row("http[].directResponse.status", 'A', "Status", &["change/direct response"]),
    row("http[].directResponse.body", 'A', "Body, as text or bytes", &["change/direct response"]),
    row("http[].rewrite.uri", 'A', "New path, or new beginning of it", &["change/rewrite the prefix"]),
    row("http[].rewrite.authority", 'A', "New host", &["change/rewrite the authority"]),
    row("http[].rewrite.uriRegexRewrite", 'B', "Search and replace on the path", &["change/rewrite by pattern"]),
    row("http[].retries.attempts", 'A', "Tries after the first; 0 switches off", &["send/retries by status"]),
    row("http[].retries.perTryTimeout", 'A', "Limit for one try", &["send/timeouts"]),
    row("http[].retries.retryOn", 'A', "Conditions", &["send/retries by status", "send/resets", "traffic/retry words"]),
    row("http[].retries.retryRemoteLocalities", 'B', "May leave the locality", &["a_later_try_may_leave_the_locality"]),
    row("http[].retries.retryIgnorePreviousHosts", 'A', "Prefers endpoints that were not tried", &["traffic/another endpoint next time"]),
    row("http[].retries.backoff", 'B', "First wait between tries", &["waits_double_up_to_ten_times_the_first"]),
    row("http[].fault.delay.fixedDelay", 'A', "How long to hold a request", &["send/faults"]),
    row("http[].fault.delay.percentage", 'A', "Share that is held", &["send/faults"]),
    row("http[].fault.delay.percent", 'C', "The same in its old form", &["traffic/delays in the old form"]),
    row("http[].fault.delay.exponentialDelay", 'C', "Never implemented anywhere", &[]).not_here("no implementation has it"),
    row("http[].fault.abort.httpStatus", 'A', "Status to answer with", &["send/faults"]),
    row("http[].fault.abort.grpcStatus", 'A', "gRPC status to answer with", &["send/faults"]),
    row("http[].fault.abort.http2Error", 'C', "Never implemented anywhere", &[]).not_here("no implementation has it"),
    row("http[].fault.abort.percentage", 'A', "Share that is answered so", &["send/faults"]),
    row("http[].corsPolicy.allowOrigins", 'B', "Origins that are served", &["cors/cors"]),
    row("http[].corsPolicy.allowOrigin", 'C', "The same in its old form", &["traffic/preflights of other origins"]),
    row("http[].corsPolicy.allowMethods", 'B', "Methods told to browsers", &["cors/cors"]),
    row("http[].corsPolicy.allowHeaders", 'B', "Headers told to browsers", &["cors/cors"]),
    row("http[].corsPolicy.exposeHeaders", 'B', "Headers that pages may read", &["cors/cors"]),
    row("http[].corsPolicy.maxAge", 'B', "How long a browser may keep the answer", &["cors/cors"]),
    row("http[].corsPolicy.allowCredentials", 'B', "Requests with credentials", &["cors/cors"]),
    row("http[].corsPolicy.unmatchedPreflights", 'C', "What becomes of preflights of other origins", &["traffic/preflights of other origins"]),
    row("tls[].match[].sniHosts", 'B', "Server names", &["tls_goes_where_its_server_name_says", "every_part_of_a_block_for_opaque_connections_must_hold"]),
    row("tls[].match[].destinationSubnets", 'C', "Destination addresses", &["every_part_of_a_block_for_opaque_connections_must_hold"]),
    row("tls[].match[].port", 'B', "Port of the service", &["every_part_of_a_block_for_opaque_connections_must_hold"]),
    row("tls[].match[].sourceLabels", 'B', "Labels of the calling pod", &["every_part_of_a_block_for_opaque_connections_must_hold"]),
    row("tls[].match[].sourceNamespace", 'B', "Namespace of the caller's certificate", &["every_part_of_a_block_for_opaque_connections_must_hold"]),
    row("tls[].match[].gateways", 'C', "Where the block counts", &["blocks_for_other_gateways_are_no_rules_of_the_mesh"]),
    row("tls[].route", 'B', "Destinations with weights", &["tls_goes_where_its_server_name_says"]),
    row("tcp[].match[].port", 'A', "Port of the service", &["every_part_of_a_block_for_opaque_connections_must_hold"]),
    row("tcp[].match[].destinationSubnets", 'C', "Destination addresses", &["every_part_of_a_block_for_opaque_connections_must_hold"]),
    row("tcp[].match[].sourceSubnet", 'C', "Source addresses", &["source_ranges_look_at_the_callers_address"]),
    row("tcp[].match[].sourceLabels", 'B', "Labels of the calling pod", &["every_part_of_a_block_for_opaque_connections_must_hold"]),
    row("tcp[].match[].sourceNamespace", 'B', "Namespace of the caller's certificate", &["every_part_of_a_block_for_opaque_connections_must_hold"]),
    row("tcp[].match[].gateways", 'C', "Where the block counts", &["blocks_for_other_gateways_are_no_rules_of_the_mesh"]),
    row("tcp[].route", 'A', "Destinations with weights", &["tcp_and_tls_routes_are_rules_for_opaque_connections", "weights_choose_and_a_single_destination_takes_all"]),
];

// One row a line, however long.
#[rustfmt::skip]
pub(super) const DESTINATION_RULE: &[Row] = &[
    row("host", 'A', "The service it is about", &["send/subsets"]),
    row("trafficPolicy", 'A', "Settings for all ports and subsets", &["send/balancing"]),
    row("subsets", 'A', "Groups of endpoints by labels", &["send/subsets"]),
    row("subsets[].name", 'A', "What routes call it", &["send/subsets"]),
    row("subsets[].labels", 'A', "Labels its endpoints have", &["send/subsets"]),
    row("subsets[].trafficPolicy", 'A', "Settings of one subset", &["send/balancing"]),
    row("exportTo", 'B', "Namespaces that may use it", &["objects_are_there_for_the_namespaces_they_name"]),
    row("workloadSelector", 'C', "Calling pods it is about", &[]),
    row("trafficPolicy.portLevelSettings", 'A', "Settings of one port, in place of all others", &["traffic/settings of ports", "ports_have_rules_of_their_own"]),
    row("trafficPolicy.loadBalancer.simple", 'A', "Round robin, random, least request; PASSTHROUGH: the address that was dialled", &["send/balancing", "the_address_that_was_dialled_is_called"]),
    row("trafficPolicy.loadBalancer.consistentHash.httpHeaderName", 'A', "Endpoint by a header", &["traffic/hashing by header", "a_key_stays_with_its_endpoint"]),
    row("trafficPolicy.loadBalancer.consistentHash.httpCookie", 'A', "Endpoint by a cookie, made where there is none", &["traffic/hashing by cookie", "a_cookie_that_is_given_out_leads_back"]),
    row("trafficPolicy.loadBalancer.consistentHash.useSourceIp", 'A', "Endpoint by the caller's address", &["traffic/hashing by address"]),
    row("trafficPolicy.loadBalancer.consistentHash.httpQueryParameterName", 'B', "Endpoint by a query parameter", &["traffic/hashing by parameter"]),
    row("trafficPolicy.loadBalancer.consistentHash.ringHash", 'B', "Size of the ring", &["keys_spread_by_weight_and_few_move"]),
    row("trafficPolicy.loadBalancer.consistentHash.maglev", 'B', "Size of the table", &["keys_spread_by_weight_and_few_move"]),
    row("trafficPolicy.loadBalancer.consistentHash.minimumRingSize", 'C', "Size of the ring in its old form", &["keys_spread_by_weight_and_few_move"]),
    row("trafficPolicy.loadBalancer.localityLbSetting.enabled", 'A', "Switches balancing by place", &["it_counts_where_it_is_on_and_has_what_it_needs"]),
    row("trafficPolicy.loadBalancer.localityLbSetting.distribute", 'A', "Shares of places", &["shares_are_those_of_the_callers_place"]),
    row("trafficPolicy.loadBalancer.localityLbSetting.failover", 'A', "Where to go from a failed region", &["nearer_comes_first_and_named_regions_before_others"]),
    row("trafficPolicy.loadBalancer.localityLbSetting.failoverPriority", 'B', "Labels to compare, in order", &["labels_are_compared_in_order"]),
    row("trafficPolicy.loadBalancer.zoneAwareLbSetting", 'C', "Prefers a zone with an even spread", &[]),
    row("trafficPolicy.loadBalancer.warmup", 'B', "New endpoints start slowly", &["warming_up_grows_from_the_least_share_to_all"]),
    row("trafficPolicy.loadBalancer.warmupDurationSecs", 'C', "The same in its old form", &["a_slow_start_may_be_written_in_its_old_form"]),
    row("trafficPolicy.connectionPool.tcp.maxConnections", 'A', "Most connections", &["traffic/one connection", "one_connection_serves_one_request_after_the_other"]),
    row("trafficPolicy.connectionPool.tcp.connectTimeout", 'A', "Time to connect", &["an_endpoint_has_so_long_to_be_reached", "connection_limits_of_services_without_a_waypoint"]),
    row("trafficPolicy.connectionPool.tcp.tcpKeepalive", 'B', "Keepalive of sockets", &["a_rule_says_how_sockets_are_probed_and_the_rest_stays"]),
    row("trafficPolicy.connectionPool.tcp.maxConnectionDuration", 'B', "Longest life of a connection", &["silent_and_old_connections_end"]),
    row("trafficPolicy.connectionPool.tcp.idleTimeout", 'A', "Idle connections close", &["silent_and_old_connections_end"]),
    row("trafficPolicy.connectionPool.http.http1MaxPendingRequests", 'A', "Most requests that wait", &["traffic/one connection"]),
    row("trafficPolicy.connectionPool.http.http2MaxRequests", 'A', "Most requests at once", &["traffic/most requests", "more_than_the_limits_is_refused"]),
    row("trafficPolicy.connectionPool.http.maxRequestsPerConnection", 'B', "A connection serves so many", &["one_connection_serves_one_request_after_the_other", "ports_have_rules_of_their_own"]),
    row("trafficPolicy.connectionPool.http.maxRetries", 'A', "Most tries at once", &["a_retry_limit_leaves_the_answer_as_it_is"]),
    row("trafficPolicy.connectionPool.http.idleTimeout", 'A', "Idle connections to endpoints close", &["idle_connections_to_endpoints_are_not_used_again"]),
    row("trafficPolicy.connectionPool.http.h2UpgradePolicy", 'B', "HTTP/2 towards endpoints", &["traffic/protocol of the endpoint"]),
    row("trafficPolicy.connectionPool.http.useClientProtocol", 'B', "Speaks what the caller speaks", &["traffic/protocol of the endpoint"]),
    row("trafficPolicy.connectionPool.http.maxConcurrentStreams", 'B', "Most streams on one connection", &["a_connection_has_so_many_streams_at_once"]),
    row("trafficPolicy.connectionPool.http.http2KeepAlive", 'B', "PING on connections to endpoints", &["an_endpoint_that_does_not_answer_pings_is_given_up"]),
    row("trafficPolicy.outlierDetection.consecutive5xxErrors", 'A', "Leaves out after so many", &["traffic/outliers", "an_endpoint_that_fails_is_left_out"]),
    row("trafficPolicy.outlierDetection.consecutiveGatewayErrors", 'A', "Leaves out after so many of 502, 503, 504", &["traffic/gateway outliers"]),
    row("trafficPolicy.outlierDetection.splitExternalLocalOriginErrors", 'B', "Counts failures to connect apart", &["traffic/unreachable outliers", "failures_without_an_answer_count_as_errors_or_apart"]),
    row("trafficPolicy.outlierDetection.consecutiveLocalOriginFailures", 'B', "Leaves out after so many failures to connect", &["traffic/unreachable outliers"]),
    row("trafficPolicy.outlierDetection.interval", 'A', "Time between looks", &["each_time_is_longer_until_it_was_well_for_a_while"]),
    row("trafficPolicy.outlierDetection.baseEjectionTime", 'A', "How long, times how often", &["each_time_is_longer_until_it_was_well_for_a_while"]),
    row("trafficPolicy.outlierDetection.maxEjectionPercent", 'A', "Most that are left out", &["traffic/all are outliers"]),
    row("trafficPolicy.outlierDetection.minHealthPercent", 'A', "Below this all are used", &["traffic/enough must be well", "with_too_few_left_all_are_used"]),
    row("trafficPolicy.outlierDetection.outlierDetectionHttpErrorCodes", 'C', "Which statuses count", &[]),
    row("trafficPolicy.outlierDetection.consecutiveErrors", 'C', "The count in its old form", &[]),
    row("trafficPolicy.tls.mode", 'A', "TLS within, or in place of, the mesh's own, which no mode takes away", &["tls_is_begun_and_the_server_verified", "old_servers_and_client_certificates_are_served", "tls_that_cannot_be_begun_as_written_refuses", "a_subset_may_end_the_tls_that_its_service_asks_for", "traffic/no TLS"]),
    row("trafficPolicy.tls.credentialName", 'B', "Secret with keys, of the waypoint's namespace", &["a_secret_takes_the_place_of_files", "keys_of_a_rule_are_told_to_the_waypoint_of_its_namespace", "what_a_secret_holds_is_shown_and_trusted_until_it_is_gone"]),
    row("trafficPolicy.tls.subjectAltNames", 'B', "Names an endpoint may have", &["tls_is_begun_and_the_server_verified"]),
    row("trafficPolicy.tls.sni", 'A', "Server name to ask for", &["tls_is_begun_and_the_server_verified"]),
    row("trafficPolicy.tls.insecureSkipVerify", 'B', "Does not look at the certificate", &["a_secret_takes_the_place_of_files", "whoever_asks_for_it_gets_any_server", "a_server_may_be_anybody_where_the_rule_says_so"]),
    row("trafficPolicy.tls.clientCertificate", 'C', "Files with keys", &["old_servers_and_client_certificates_are_served", "tls_that_cannot_be_begun_as_written_refuses"]),
    row("trafficPolicy.tls.caCrl", 'C', "Revocation list", &[]),
    row("trafficPolicy.tunnel", 'C', "Through a CONNECT proxy", &[]),
    row("trafficPolicy.proxyProtocol", 'B', "PROXY line to endpoints", &["traffic/who called", "every_port_and_subset_is_told_who_called", "endpoints_are_told_who_called"]),
    row("trafficPolicy.retryBudget.percent", 'A', "Share of requests that may be tries", &["a_budget_is_a_share_of_what_is_active_and_never_less_than_its_floor"]),
    row("trafficPolicy.retryBudget.minRetryConcurrency", 'A', "Tries that are always allowed", &["a_budget_is_a_share_of_what_is_active_and_never_less_than_its_floor"]),
    row("trafficPolicy.retryBudget.budgetInterval", 'C', "Over which time the share counts", &[]),
];

// One row a line, however long.
#[rustfmt::skip]
pub(super) const ISTIO_GATEWAY: &[Row] = &[
    row("selector", 'B', "Pods it configures", &["s060_a_gateway_serves_its_hosts_on_port_30000_of_every_node"]),
    row("servers[].port", 'B', "Port to listen on", &["s060_a_gateway_serves_its_hosts_on_port_30000_of_every_node"]),
    row("servers[].bind", 'C', "Address to listen on", &["a_server_for_one_address_is_refused"]).but("only 0.0.0.0 and ::, which is every address; with another one nothing is served there"),
    row("servers[].hosts", 'B', "Hosts that are shown", &["hosts_of_a_gateway_and_of_its_routes_have_to_meet"]),
    row("servers[].name", 'C', "Name in logs", &[]).but("logs name the Gateway and the place of the server"),
    row("servers[].defaultEndpoint", 'C', "Never implemented anywhere", &[]).not_here("no implementation has it"),
    row("servers[].tls.httpsRedirect", 'B', "Sends callers to https", &["callers_are_sent_to_https"]),
    row("servers[].tls.mode", 'B', "How TLS ends", &["keys_are_told_to_the_gateway_that_names_them_and_to_nobody_else", "callers_of_the_mesh_are_who_their_certificates_say", "connections_within_tls_that_ends_are_passed_on", "server_names_say_where_connections_go", "callers_of_the_mesh_go_out_through_a_gateway_and_tls_begins_there"]),
    row("servers[].tls.credentialName", 'B', "Secret with keys", &["keys_are_told_to_the_gateway_that_names_them_and_to_nobody_else", "a_gateway_shows_certificates_of_an_api_server"]),
    row("servers[].tls.credentialNames", 'C', "Several Secrets", &["each_server_name_gets_its_certificate"]),
    row("servers[].tls.subjectAltNames", 'B', "Names callers may have, where they show a certificate: with mode SIMPLE nothing is served, and that is told", &["names_of_callers_and_versions_are_told", "callers_have_one_of_the_names_that_are_asked_for", "callers_of_the_mesh_are_who_their_certificates_say"]),
    row("servers[].tls.minProtocolVersion", 'B', "Oldest TLS", &["names_of_callers_and_versions_are_told", "versions_of_tls_are_those_that_are_let_in"]),
    row("servers[].tls.maxProtocolVersion", 'B', "Newest TLS", &["names_of_callers_and_versions_are_told", "versions_of_tls_are_those_that_are_let_in"]),
    row("servers[].tls.cipherSuites", 'C', "Suites of TLS 1.2", &[]),
];

// One row a line, however long.
#[rustfmt::skip]
pub(super) const SERVICE_ENTRY: &[Row] = &[
    row("hosts", 'A', "Names that become known", &["a_host_has_one_owner_in_a_namespace_and_one_canonical", "a_service_entry_has_routes_rules_and_policies_at_its_waypoint"]),
    row("addresses", 'B', "Virtual addresses", &["hosts_without_an_address_are_given_one_and_keep_it", "each_resolution_has_its_services_and_endpoints"]),
    row("ports", 'A', "Ports", &["each_resolution_has_its_services_and_endpoints"]),
    row("location", 'A', "Inside or outside the mesh", &["an_address_of_a_pod_is_reached_as_the_pod"]),
    row("resolution", 'A', "How endpoints are found", &["each_resolution_has_its_services_and_endpoints", "every_address_of_a_host_name_is_an_endpoint", "an_address_that_stands_for_itself_is_called_itself", "a_host_of_a_domain_is_the_one_that_is_asked_for"]),
    row("endpoints", 'A', "Endpoints, written out", &["each_resolution_has_its_services_and_endpoints"]),
    row("workloadSelector", 'B', "Pods that are endpoints", &["pods_may_be_the_endpoints", "workload_entries_are_endpoints_of_what_selects_them"]),
    row("exportTo", 'B', "Namespaces that may use it", &["who_may_see_it"]),
    row("subjectAltNames", 'B', "Identities of tunnels' ends besides their own", &["listed_names_widen_what_is_accepted"]),
];

// One row a line, however long.
#[rustfmt::skip]
pub(super) const HTTP_ROUTE: &[Row] = &[
    row("parentRefs", 'A', "The Services and ServiceEntries it is about; with a port, one port of them", &["parents_that_are_not_there_are_told", "a_consumer_route_is_for_its_namespace_and_a_port_for_its_port", "every_host_of_a_service_entry_has_its_routes"]),
    row("hostnames", 'A', "Not looked at for Services: calls are told by address", &["http_routes_do_what_the_conformance_suite_for_meshes_asks"]),
    row("rules[].name", 'A', "Name of a rule in logs", &["filters_limits_and_retries"]),
    row("rules[].matches[].path", 'A', "Path: equal, its first elements, or a pattern", &["the_more_exact_rule_comes_first_across_routes", "route/paths"]),
    row("rules[].matches[].headers", 'A', "Headers, equal or by pattern", &["route/headers and parameters"]),
    row("rules[].matches[].queryParams", 'A', "Query parameters, equal or by pattern", &["route/headers and parameters"]),
    row("rules[].matches[].method", 'A', "Method; for gRPC service and method", &["route/headers and parameters", "grpc_methods_are_paths", "route/gRPC"]),
    row("rules[].filters[].requestHeaderModifier", 'A', "Header edits on requests", &["route/filters"]),
    row("rules[].filters[].responseHeaderModifier", 'A', "Header edits on responses", &["route/filters"]),
    row("rules[].filters[].requestMirror", 'A', "Copies requests, all or a share", &["filters_limits_and_retries", "route/filters"]),
    row("rules[].filters[].requestRedirect", 'A', "Answers with a redirect", &["route/redirects"]),
    row("rules[].filters[].urlRewrite", 'A', "Changes host or path", &["route/rewrites"]),
    row("rules[].filters[].cors", 'B', "Cross-origin rules", &["filters_limits_and_retries", "route/cross-origin rules"]),
    row("rules[].filters[].externalAuth", 'B', "Asks an authoriser, over HTTP or gRPC", &["authorisers_reach_the_waypoint_with_their_destination", "an_authoriser_over_http_decides", "an_authoriser_over_grpc_decides", "authoriser/over HTTP", "an_authoriser_decides_about_a_route"]),
    row("rules[].filters[].extensionRef", 'B', "Limits of a RateLimitPolicy for one rule", &["limits_that_routes_name_reach_the_waypoint", "limits_of_a_rule_and_of_a_destination_count_for_these_alone"]),
    row("rules[].backendRefs", 'A', "Destinations with weights; of other namespaces with a ReferenceGrant", &["destinations_that_are_not_there_or_not_allowed_answer_500", "route/destinations"]),
    row("rules[].backendRefs[].filters", 'A', "Filters for one destination: header edits, rewrites, redirects, copies, authorisers, limits", &["route/filters of a destination", "filters_of_a_destination_are_told_with_it", "a_destination_has_rewrites_redirects_and_copies_of_its_own"]),
    row("rules[].backendRefs[].filters[].cors", 'C', "Cross-origin rules for one destination", &[]),
    row("rules[].backendRefs[].filters[].externalAuth", 'C', "Asks an authoriser about one destination", &["authorisers_reach_the_waypoint_with_their_destination", "a_destination_has_an_authoriser_of_its_own"]),
    row("rules[].backendRefs[].filters[].extensionRef", 'C', "Limits of a RateLimitPolicy for one destination", &["limits_that_routes_name_reach_the_waypoint", "limits_of_a_rule_and_of_a_destination_count_for_these_alone"]),
    row("rules[].timeouts", 'A', "Limits for the request and for one try", &["route/limits"]),
    row("rules[].retry", 'A', "When and how often to try again", &["route/limits"]),
    row("rules[].sessionPersistence", 'B', "Keeps a caller with one endpoint", &["sessions_reach_the_waypoint", "a_session_stays_with_its_endpoint_until_that_is_gone", "a_session_may_be_shown_by_a_header", "a_session_ends_when_nothing_is_asked_for_a_while"]),
];

// One row a line, however long.
#[rustfmt::skip]
pub(super) const WORKLOAD_ENTRY: &[Row] = &[
    row("address", 'A', "Where it is, by address or host name", &["workload_entries_are_endpoints_of_what_selects_them"]),
    row("ports", 'A', "Its ports by the names of the service's ports", &["workload_entries_are_endpoints_of_what_selects_them"]),
    row("labels", 'A', "Labels, besides those of the object", &["workload_entries_are_endpoints_of_what_selects_them"]),
    row("network", 'C', "Network it is on", &["workload_entries_are_endpoints_of_what_selects_them"]),
    row("locality", 'B', "Where it is, for balancing", &["nearer_comes_first_and_named_regions_before_others"]),
    row("weight", 'B', "Share of the calls", &["workload_entries_are_endpoints_of_what_selects_them"]),
    row("serviceAccount", 'B', "Account it runs as", &["workload_entries_are_endpoints_of_what_selects_them"]),
];

// One row a line, however long.
#[rustfmt::skip]
pub(super) const TLS_ROUTE: &[Row] = &[
    row("parentRefs", 'B', "The Services and ServiceEntries it is about; with a port, one port of them", &["opaque_routes_of_ports_and_callers_leave_the_rest_as_it_was", "every_host_of_a_service_entry_has_its_routes"]),
    row("hostnames", 'B', "Server names, of a TLSRoute", &["tcp_and_tls_routes_are_rules_for_opaque_connections"]),
    row("rules[].name", 'C', "Name of a rule", &[]).not_here("logs of connections name no rule"),
    row("rules[].backendRefs", 'B', "Destinations with weights; of other namespaces with a ReferenceGrant", &["tcp_and_tls_routes_are_rules_for_opaque_connections"]),
];
