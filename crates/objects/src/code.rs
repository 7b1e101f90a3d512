//! Stable codes of what there is to say about objects: one table for `isobar analyze` and for the page
//! `docs/findings.md`. A code never changes its meaning, and is never used again for another.

use std::fmt;

/// A code, as `ISO0104`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Code(u16);

/// What a code stands for.
#[derive(Debug, Clone, Copy)]
pub struct CodeEntry {
    /// The code.
    pub code: Code,
    /// One word; for what the control plane says of an object, the reason in its condition.
    pub name: &'static str,
    /// Field that it is usually about; may be empty.
    pub field: &'static str,
    /// What it means, in a sentence.
    pub means: &'static str,
    /// What to do.
    pub mend: &'static str,
}

impl Code {
    /// A file or a document that cannot be read.
    pub const UNREADABLE: Self = Self(101);
    /// No `apiVersion`, `kind` or name.
    pub const NO_IDENTITY: Self = Self(102);
    /// A kind or version that nobody knows.
    pub const UNKNOWN_KIND: Self = Self(103);
    /// A field that nobody knows.
    pub const UNKNOWN_FIELD: Self = Self(104);
    /// A value that breaks a rule of its kind.
    pub const INVALID_VALUE: Self = Self(105);
    /// Two objects of one identity.
    pub const DEFINED_TWICE: Self = Self(106);
    /// Something that this version does not do.
    pub const NOT_HONOURED: Self = Self(107);
    /// A kind that is none of the mesh's business.
    pub const KIND_NOT_USED: Self = Self(108);
    /// A name that leads nowhere among the objects.
    pub const DANGLING: Self = Self(109);
    /// Anything else worth knowing.
    pub const ADVICE: Self = Self(110);
    /// What the control plane says with a reason that has no code of its own.
    pub const OTHER: Self = Self(299);
    /// A NetworkPolicy shuts what the mesh needs open.
    pub const DOOR_SHUT: Self = Self(301);
    /// A NetworkPolicy shuts out probes.
    pub const PROBES_SHUT: Self = Self(304);
    /// In the mesh by label, and not redirected.
    pub const NOT_REDIRECTED: Self = Self(401);
    /// Redirected, and not in the mesh by label.
    pub const STILL_REDIRECTED: Self = Self(402);
    /// Routes of a service without a waypoint.
    pub const ROUTES_WITHOUT_WAYPOINT: Self = Self(403);
    /// A label's value that means nothing.
    pub const MODE_NOT_KNOWN: Self = Self(404);
    /// A sidecar in a namespace of the mesh.
    pub const SIDECAR: Self = Self(405);
    /// A proxy that is not in step.
    pub const PROXY_BEHIND: Self = Self(406);
    /// No control plane answers.
    pub const NO_CONTROL_PLANE: Self = Self(407);
    /// Callers reach a pod without its node proxy.
    pub const BYPASS: Self = Self(408);
    /// A policy that does not count for the control plane.
    pub const LEFT_OUT: Self = Self(409);
    /// The root namespace does not count for the control plane.
    pub const ROOT_LEFT_OUT: Self = Self(410);
    /// Pods are reached past a waypoint that enforces something.
    pub const PAST_WAYPOINT: Self = Self(411);

    /// The code of what a control plane gives a reason for.
    #[must_use]
    pub fn of_reason(reason: &str) -> Self {
        let judged = TABLE.iter().filter(|e| (200..400).contains(&e.code.0));
        let mut found = judged.filter(|entry| entry.name == reason);
        found.next().map_or(Self::OTHER, |entry| entry.code)
    }

    /// The code that is written so.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut found = TABLE
            .iter()
            .filter(|e| e.code.to_string().eq_ignore_ascii_case(text));
        found.next().map(|entry| entry.code)
    }

    /// What it stands for.
    #[must_use]
    pub fn entry(self) -> &'static CodeEntry {
        let found = TABLE.iter().find(|entry| entry.code == self);
        found.unwrap_or(&TABLE[0])
    }

    /// The page and place that tell more, from the root of the sources.
    #[must_use]
    pub fn page(self) -> String {
        format!("docs/findings.md#{}", self.to_string().to_ascii_lowercase())
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ISO{:04}", self.0)
    }
}

/// All codes, in order.
#[must_use]
pub const fn codes() -> &'static [CodeEntry] {
    TABLE
}

const fn entry(
    code: u16,
    name: &'static str,
    field: &'static str,
    means: &'static str,
    mend: &'static str,
) -> CodeEntry {
    CodeEntry {
        code: Code(code),
        name,
        field,
        means,
        mend,
    }
}

#[rustfmt::skip]
const TABLE: &[CodeEntry] = &[
    entry(101, "Unreadable", "", "a file or a document of it cannot be read: no UTF-8, no YAML, too large, no permission", "mend the text at the line that is named; objects of it that were in force stay so until then"),
    entry(102, "NoIdentity", "metadata.name", "an object without apiVersion, kind or a name that Kubernetes would take", "write all three; names are lower-case letters, digits, \"-\" and \".\""),
    entry(103, "UnknownKind", "kind", "a kind, or a version of a kind, that neither the mesh nor Kubernetes has", "write the kind and apiVersion that the finding names"),
    entry(104, "UnknownField", "", "a field that the kind does not have; nothing would come of it, so the object is not taken", "write the field as the finding proposes, at the right depth"),
    entry(105, "InvalidValue", "", "a value of the wrong type or outside of its bounds; the object's last good version stays in force", "write a value as the finding says"),
    entry(106, "DefinedTwice", "metadata.name", "two objects of one kind, namespace and name in the files; the first one counts", "remove one, or give it another name"),
    entry(107, "NotHonoured", "", "valid, but something that this version does not do; the object is in force without it, or refuses, as its status says", "remove the field, or look in docs/features.md for what works instead"),
    entry(108, "KindNotUsed", "kind", "a kind that the mesh has no use for; it is left alone", "nothing to do; keep it out of folders for the lab to silence this"),
    entry(109, "DanglingReference", "", "a host, subset, policy target or other object that is named is not there", "correct the name, or apply the object as well"),
    entry(110, "Advice", "", "in force as written, but perhaps not what was meant", "see the finding"),

    entry(201, "WaypointIsNotReady", "metadata.labels[istio.io/use-waypoint]", "the waypoint that traffic is bound to is not there or has no ready pod; its traffic is refused, or passes it where fail-open was asked for", "look at `isobar waypoint status`; deploy the waypoint with `isobar waypoint apply` (a Gateway of another class is ready once whoever runs it gives it an address), or remove the label"),
    entry(202, "AttachmentDenied", "metadata.labels[istio.io/use-waypoint]", "the waypoint does not admit this namespace or account; the traffic is refused", "widen `allowedRoutes` of the waypoint's listener, or use a waypoint of the same namespace"),
    entry(203, "UnsupportedTrafficType", "metadata.labels[istio.io/use-waypoint]", "the waypoint is not for this kind of traffic (service or workload); the traffic is refused", "set the label istio.io/waypoint-for of the Gateway to all, or bind something else"),
    entry(204, "MixedAccounts", "spec.selector", "some endpoints of the Service run as an account that is bound to a waypoint, others do not; the traffic is refused", "bind all the accounts to the waypoint, or the Service itself, or split the Service"),
    entry(205, "ForeignAccount", "spec.selector", "endpoints that run as other accounts than the bound one are left out", "bind the Service or the namespace instead of the account, or let all pods run as it"),
    entry(206, "EndpointsBound", "spec.selector", "the Service's pods are bound to waypoints of their own", "bind the Service to the waypoint as well"),
    entry(207, "WaypointRefused", "spec.rules", "an L4 policy on pods refuses the waypoint through which their traffic comes", "write rules on callers in a policy with targetRefs, and allow (or spare) the waypoint's account here"),
    entry(208, "AncestorNotBound", "spec.targetRefs", "a policy for something that no waypoint serves, so that nothing could enforce it", "bind the target to a waypoint with `isobar waypoint apply`, or use a selector for L4 rules"),
    entry(209, "TargetNotFound", "spec.targetRefs", "no target of the policy is there", "correct group, kind and name; targets are in the policy's namespace"),
    entry(210, "Invalid", "spec", "the object cannot be enforced as it is written; its targets refuse", "change what the finding names"),
    entry(211, "PartiallyInvalid", "spec.targetRefs", "some targets of the policy are not there; it is in force for the others", "correct or remove those targets"),
    entry(212, "UnsupportedValue", "spec", "a value that cannot be honoured where the object applies", "write a value that the finding names, or see docs/features.md"),
    entry(213, "UnknownSubset", "spec.http[].route[].destination.subset", "a subset that no DestinationRule makes; calls there are answered 503", "add the subset to a DestinationRule of that host"),
    entry(214, "Conflicted", "spec.parentRefs", "something else is for the same, and counts: a VirtualService of the Service, or an older Gateway with the host or port", "remove one of the two"),
    entry(215, "NoWaypoint", "spec.parentRefs", "a route of a Service or ServiceEntry that no waypoint serves, or a host for a whole domain without one: nobody applies it", "bind the Service or its namespace to a waypoint with `isobar waypoint apply`"),
    entry(216, "NoMatchingParent", "spec.parentRefs", "the Service or port that a route is for is not there", "correct namespace, name and port or sectionName"),
    entry(217, "BackendNotFound", "spec.rules[].backendRefs", "a Service or port that a route leads to is not there; calls are answered 500", "correct the name and port, or apply the Service"),
    entry(218, "RefNotPermitted", "spec.rules[].backendRefs", "a route leads to another namespace, which does not permit it; calls are answered 500", "apply a ReferenceGrant in that namespace"),
    entry(219, "InvalidKind", "spec.rules[].backendRefs", "a route leads to something that is no Service", "name a Service"),
    entry(220, "IncompatibleFilters", "spec.rules[].filters", "filters that exclude each other in one rule", "put them into rules of their own"),
    entry(221, "HostConflict", "spec.hosts", "another ServiceEntry of the namespace has the host already", "remove the host from one of them"),
    entry(222, "AddressConflict", "spec.addresses", "the address belongs to a Service, a pod or another entry", "choose another address, or leave addresses out: one is given then"),
    entry(223, "NoAddress", "spec.addresses", "the entry has no address that callers could use", "write an address, or one host name without a wildcard"),
    entry(224, "Conflict", "metadata.name", "objects that the waypoint needs are there and somebody else's", "give the Gateway another name"),
    entry(225, "ListenersNotValid", "spec.listeners", "a waypoint without a listener of protocol HBONE on port 15008", "use what `isobar waypoint apply` writes"),
    entry(226, "Pending", "status", "no pod of the waypoint has been ready yet", "look at the pods of its Deployment and their logs"),
    entry(227, "InvalidCertificateRef", "spec.listeners[].tls.certificateRefs", "a certificate that a listener, server or DestinationRule names is not there or cannot be used; handshakes fail, or go on with the one before", "apply a Secret of type kubernetes.io/tls with a chain and its key"),
    entry(228, "NoMatchingListenerHostname", "spec.hostnames", "no listener of the Gateway has a host name that the route's go with", "correct the host names of route or listener"),
    entry(229, "NotAllowedByListeners", "spec.parentRefs", "no listener of the Gateway admits the route", "widen `allowedRoutes` of the listener, or move the route into its namespace"),
    entry(230, "PortUnavailable", "spec.listeners[].port", "another listener has the port with another protocol, or the mesh needs it itself", "choose another port"),
    entry(231, "UnsupportedProtocol", "spec.listeners[].protocol", "a listener's protocol is none that gateways speak", "use HTTP, HTTPS or TLS"),
    entry(232, "GatewayGoesAround", "spec.targetRefs", "a gateway sends callers from outside straight to the policy's target, around the waypoint that keeps the policy", "label the Service, the ServiceEntry or its Namespace istio.io/ingress-use-waypoint: \"true\", or write a policy for the gateway as well"),
    entry(233, "CanarySameAsPrimary", "metadata.labels[istio.io/use-waypoint-canary]", "the second waypoint of an object is its first one, which takes all calls", "name another waypoint, or remove the label"),
    entry(234, "CanaryInvalidWeight", "metadata.annotations[istio.io/use-waypoint-canary-weight]", "the share of the second waypoint is no percentage; the first one takes all calls", "write a whole number from 0 to 100"),
    entry(235, "WaypointAccepted", "metadata.labels[istio.io/use-waypoint-canary]", "bound, but the second waypoint that the object names takes no calls: it is not there, has no ready pod, or does not admit them; the first one takes all", "look at `isobar waypoint status`; deploy the waypoint with `isobar waypoint apply`, or remove the label"),
    entry(236, "CanaryGoesAround", "spec.targetRefs", "the policy names one waypoint of a Service or ServiceEntry as a whole, and a share of the calls passes another one, which does not keep it", "write the policy for the Service or ServiceEntry, or name both Gateways in targetRefs"),
    entry(237, "ForeignWaypoint", "spec.targetRefs", "calls to a target of the policy pass a waypoint that somebody else runs; whether it keeps the policy is not known here", "ask who runs the waypoint, bind the target to a waypoint of class isobar-waypoint, or let the pods refuse with a policy that selects them"),
    entry(238, "ForeignHost", "spec.hosts", "a ServiceEntry has a name of the cluster that is another namespace's, or stands for names of all namespaces; the host is left out", "write the entry in the namespace that the name is of, or take a name outside the cluster's domain"),
    entry(239, "AccountMissing", "metadata.annotations[istio.io/for-service-account]", "a waypoint is for an account that is no object; pods that still run as it stay bound to a waypoint that has been ready", "apply the ServiceAccount again, with the label istio.io/use-waypoint, or remove the annotation"),
    entry(240, "AccountNotBound", "metadata.annotations[istio.io/for-service-account]", "a waypoint is for an account that does not name it: its pods' traffic passes the waypoint by, and the policies for it", "label the account istio.io/use-waypoint with the waypoint's name, or remove the annotation"),
    entry(241, "OutsideMesh", "spec.selector", "a policy that node proxies enforce is for pods that are not in the mesh, or whose annotation bypass-inbound-capture lets callers in past it, where nobody does: for none that are, or with a selector that takes some that are not", "label the pods or their namespace istio.io/dataplane-mode: ambient, or let the selector leave them out"),
    entry(242, "TooManyEndpoints", "spec", "the endpoints of a namespace would list more of Services, hosts and ports than proxies are given; the newest Services and ServiceEntries have none", "remove some, name fewer hosts or ports, or move some to another namespace"),
    entry(243, "TooManyRules", "spec.rules", "the routes of a namespace have more rules at a host, or at all hosts together, than waypoints are given; requests there that would be theirs, or that none of theirs takes, are answered with 500, and connections are refused", "write fewer rules, attach them to fewer hosts, or let the host's owner write them"),
    entry(299, "Other", "", "something else that the control plane says about the object", "see the finding"),

    entry(301, "DoorShut", "spec", "a NetworkPolicy shuts what connections of the mesh need open", "`isobar netpol fix` shows the smallest change, `--apply` makes it"),
    entry(302, "OnlyTunnelPort", "spec.ingress[].ports", "a NetworkPolicy opens 15008, the tunnel, and no port behind it", "name the application's ports beside 15008"),
    entry(303, "TooManyPorts", "spec.ingress[].ports", "a range of ports that is too large to be enforced inside tunnels; its rule opens nothing there", "narrow endPort"),
    entry(304, "ProbesShut", "spec.ingress", "a NetworkPolicy does not admit the address that probes of pods in the mesh come from; network plugins that go by addresses drop them", "`isobar netpol fix` shows the rule for it, `--apply` adds it"),
    entry(305, "EgressOpen", "spec.egress", "a NetworkPolicy names ports or waypoints and opens 15008, the tunnel, in which egress rules are not enforced", "let what must not be reached refuse its callers: ingress NetworkPolicies, AuthorizationPolicies"),
    entry(306, "NotEnforced", "metadata.labels[isobar.dev/port-rules]", "a NetworkPolicy whose ingress rules node proxies do not enforce: who comes in on 15008 reaches every port of the pod", "remove the label isobar.dev/port-rules of the namespace, or the control plane's flag --port-rules"),
    entry(307, "TooManyPeers", "spec.ingress[].from", "the NetworkPolicies of a namespace name more callers and ports, or have more rules, than node proxies are given; rules beyond it open nothing in tunnels", "let callers in by namespaceSelector alone or ipBlock, and write fewer rules: docs/network-policy.md has the limits"),

    entry(401, "NotRedirected", "metadata.annotations[ambient.istio.io/redirection]", "the pod is in the mesh by its labels, but its node agent has not said that its traffic is redirected, or says that no node proxy takes it", "look at the agent of the pod's node: `kubectl logs -n istio-system ds/isobar-cni`"),
    entry(402, "StillRedirected", "metadata.annotations[ambient.istio.io/redirection]", "the pod is redirected although its labels do not ask for it", "wait some seconds; then look at the agent of the pod's node"),
    entry(403, "RoutesWithoutWaypoint", "spec.hosts", "no waypoint serves the hosts of this VirtualService: nobody applies its rules", "bind the Service or its namespace to a waypoint with `isobar waypoint apply`"),
    entry(404, "ModeNotKnown", "metadata.labels[istio.io/dataplane-mode]", "a value of the label that means nothing", "write ambient, or none to opt out"),
    entry(405, "Sidecar", "metadata.labels", "a namespace of the mesh also asks for sidecars; pods that have one are left to it", "remove the label istio-injection or istio.io/rev, and restart the pods"),
    entry(406, "ProxyBehind", "", "a proxy refused what it was told, or has not confirmed it", "`isobar status` says which; look at that proxy's log"),
    entry(407, "NoControlPlane", "", "no control plane could be asked", "look whether it runs, and whether you may get pods/proxy"),
    entry(408, "Bypass", "metadata.annotations[ambient.istio.io/bypass-inbound-capture]", "callers reach the pod without its node proxy: no policy of the mesh holds for them", "remove the annotation unless the pod authenticates its callers itself"),
    entry(409, "LeftOut", "metadata", "a policy that the control plane does not take: its namespace is not among those that discovery selectors select, or it belongs to another revision", "label the namespace as the selectors ask, or correct the label istio.io/rev; `isobar analyze --revision NAME` asks another control plane"),
    entry(410, "RootLeftOut", "metadata.labels", "discovery selectors do not take the root namespace, so policies in it, which are for the whole mesh, count for nobody", "label the root namespace as the selectors ask, or add a selector for it"),
    entry(411, "PastWaypoint", "metadata", "a waypoint with policies has pods behind it that are not in the mesh, or let callers in past their node proxy: callers outside the mesh reach these past the waypoint", "label the pods or their namespace istio.io/dataplane-mode: ambient, or keep such callers away with a NetworkPolicy"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_names_are_unique_and_in_order() {
        let numbers: Vec<u16> = TABLE.iter().map(|entry| entry.code.0).collect();
        assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
        let mut names: Vec<&str> = TABLE.iter().map(|entry| entry.name).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn reasons_and_texts_lead_to_codes() {
        assert_eq!(Code::of_reason("DoorShut"), Code::DOOR_SHUT);
        assert_eq!(Code::of_reason("ProbesShut"), Code::PROBES_SHUT);
        assert_eq!(Code::of_reason("Sidecar"), Code::OTHER);
        assert_eq!(Code::parse("iso0104"), Some(Code::UNKNOWN_FIELD));
        assert_eq!(Code::parse("ISO9999"), None);
        assert_eq!(Code::UNKNOWN_FIELD.entry().name, "UnknownField");
        assert_eq!(Code::BYPASS.page(), "docs/findings.md#iso0408");
    }
}
