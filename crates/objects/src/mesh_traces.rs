//! What a MeshConfig says of traces: `extensionProviders`, `defaultProviders.tracing`, `defaultConfig.tracing` and
//! `enableTracing`.

use std::net::IpAddr;

use serde_json::{Map, Value};

use crate::mesh_config::MeshConfig;

/// The kind of provider that spans are sent to.
const KIND: &str = "opentelemetry";
/// Fields of it that are honoured.
const HONOURED: [&str; 2] = ["service", "port"];
/// Percent of new traces that are sampled where nothing is said, as with Istio.
const SAMPLING: f64 = 1.0;
/// Traces of a million for each percent.
const PERCENT: f64 = 10_000.0;

/// Where waypoints and gateways send spans of requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshTraces {
    /// Host name or address of a collector that takes OTLP over gRPC.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Traces of a million that are sampled, where nobody before has decided.
    pub per_million: u32,
}

/// What is read, and what of it is not honoured: fields, each with a sentence.
type Told = Vec<(String, String)>;

impl MeshConfig {
    /// Where spans go; `None`: there are none.
    #[must_use]
    pub fn traces(&self) -> Option<MeshTraces> {
        self.read_traces().0
    }

    /// The same, and what of it is not honoured.
    pub(crate) fn read_traces(&self) -> (Option<MeshTraces>, Told) {
        let mut told = Vec::new();
        let found = self.providers(&mut told);
        let per_million = sampled(&self.default_config["tracing"], &mut told);
        let wanted = self.default_providers["tracing"].as_array();
        let mut wanted = wanted.into_iter().flatten().filter_map(Value::as_str);
        let Some(name) = wanted.next() else {
            return (None, told);
        };
        let mut tell = |why: String| told.push(("defaultProviders.tracing".to_owned(), why));
        if wanted.next().is_some() {
            tell(format!("several providers of traces: {name} counts"));
        }
        let Some((_, host, port)) = found.into_iter().find(|(one, ..)| *one == name) else {
            tell(format!(
                "no provider {name} with {KIND}.service and {KIND}.port (OTLP over gRPC) is in extensionProviders: \
                 there are no spans"
            ));
            return (None, told);
        };
        let traces = MeshTraces {
            host,
            port,
            per_million,
        };
        let is_on = self.enable_tracing.unwrap_or(true);
        (is_on.then_some(traces), told)
    }

    /// Those that spans can be sent to: name, host and port.
    fn providers(&self, told: &mut Told) -> Vec<(&str, String, u16)> {
        let mut found = Vec::new();
        let all = self.extension_providers.as_array();
        for (at, provider) in all.into_iter().flatten().enumerate() {
            let place = format!("extensionProviders[{at}]");
            let Some(fields) = provider.as_object() else {
                told.push((place, "a provider that is no map of fields".to_owned()));
                continue;
            };
            for kind in fields.keys().filter(|key| *key != "name" && *key != KIND) {
                let why = format!("providers of this kind: {KIND} is the one that is used");
                told.push((format!("{place}.{kind}"), why));
            }
            let name = fields.get("name").and_then(Value::as_str);
            match (name, fields.get(KIND).and_then(Value::as_object)) {
                (Some(name), Some(own)) => {
                    let place = format!("{place}.{KIND}");
                    let usable = address(own, &place, told);
                    found.extend(usable.map(|(host, port)| (name, host, port)));
                }
                (None, _) => told.push((place, "a provider without a name".to_owned())),
                (Some(_), None) if fields.len() == 1 => {
                    told.push((place, "a provider of no kind".to_owned()));
                }
                (Some(_), None) => {}
            }
        }
        found
    }
}

/// Host and port of a collector, where it is one that takes OTLP over gRPC.
fn address(own: &Map<String, Value>, place: &str, told: &mut Told) -> Option<(String, u16)> {
    for field in own.keys().filter(|key| !HONOURED.contains(&key.as_str())) {
        let why = match field.as_str() {
            "http" => {
                "OTLP over HTTP: nothing is sent there; remove the field and name the port of OTLP over gRPC"
            }
            _ => "options of a provider besides service and port",
        };
        told.push((format!("{place}.{field}"), why.to_owned()));
    }
    let service = own.get("service").and_then(Value::as_str);
    // Istio's "namespace/host"; hosts say by themselves whose they are.
    let host = service.map(|service| service.rsplit('/').next().unwrap_or(service));
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    let is_host = |host: &&str| {
        let named = !host.is_empty() && host.len() <= 253 && host.bytes().all(fits);
        named || host.parse::<IpAddr>().is_ok()
    };
    let host = host.filter(is_host);
    if host.is_none() {
        let why = "a service that is no host name: nothing is sent there";
        told.push((format!("{place}.service"), why.to_owned()));
    }
    let port = own.get("port").and_then(Value::as_u64);
    let port = port.and_then(|port| u16::try_from(port).ok());
    let port = port.filter(|port| *port > 0);
    if port.is_none() {
        let why = "a port that is not from 1 to 65535: nothing is sent there";
        told.push((format!("{place}.port"), why.to_owned()));
    }
    let grpc = !own.contains_key("http");
    Some((host?.to_owned(), port?)).filter(|_| grpc)
}

/// Traces of a million that are sampled.
fn sampled(tracing: &Value, told: &mut Told) -> u32 {
    let place = "defaultConfig.tracing";
    for field in tracing.as_object().into_iter().flat_map(Map::keys) {
        if field != "sampling" {
            let why = "settings of proxies for traces besides sampling";
            told.push((format!("{place}.{field}"), why.to_owned()));
        }
    }
    let asked = match &tracing["sampling"] {
        Value::Null => Some(SAMPLING),
        other => other.as_f64(),
    };
    let percent = asked.filter(|percent| (0.0..=100.0).contains(percent));
    if percent.is_none() {
        let why = format!("a percentage that is not from 0 to 100: {SAMPLING} counts");
        told.push((format!("{place}.sampling"), why));
    }
    let percent = percent.unwrap_or(SAMPLING);
    // However few are asked for, they are more than none.
    let parts = (percent * PERCENT)
        .round()
        .max(f64::from(u8::from(percent > 0.0)));
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "from 0 to a million"
    )]
    let parts = parts as u32;
    parts
}

#[cfg(test)]
mod tests {
    use serde::Deserialize as _;

    use super::*;

    fn read(text: &str) -> (Option<MeshTraces>, Vec<String>) {
        let value: Value = serde_saphyr::from_str(text).unwrap();
        let (traces, told) = MeshConfig::deserialize(value).unwrap().read_traces();
        (traces, told.into_iter().map(|(field, _)| field).collect())
    }

    const PROVIDER: &str = "extensionProviders: [{name: otel, opentelemetry: {service: otel.obs.svc.cluster.local, \
                            port: 4317}}]\n";
    const ON: &str = "defaultProviders: {tracing: [otel]}\n";

    #[test]
    fn spans_go_to_the_default_provider_of_traces() {
        let per_million = |more: &str| {
            let (traces, told) = read(&format!("{PROVIDER}{ON}{more}"));
            assert!(told.is_empty(), "{told:?}");
            traces.map(|traces| {
                assert_eq!(
                    (&*traces.host, traces.port),
                    ("otel.obs.svc.cluster.local", 4317)
                );
                traces.per_million
            })
        };
        assert_eq!(per_million(""), Some(10_000));
        for (percent, expect) in [
            ("100", 1_000_000),
            ("0", 0),
            ("0.5", 5_000),
            ("0.000001", 1),
        ] {
            let more = format!("defaultConfig: {{tracing: {{sampling: {percent}}}}}");
            assert_eq!(per_million(&more), Some(expect));
        }
        assert_eq!(per_million("enableTracing: true"), Some(10_000));
        assert_eq!(per_million("enableTracing: false"), None);
    }

    #[test]
    fn without_a_default_provider_there_are_none() {
        for text in [PROVIDER, "{}", "defaultProviders: {metrics: [prometheus]}"] {
            assert_eq!(read(text), (None, vec![]), "{text}");
        }
        let unknown = "defaultProviders: {tracing: [other]}";
        let (traces, told) = read(&format!("{PROVIDER}{unknown}"));
        assert_eq!(
            (traces, told),
            (None, vec!["defaultProviders.tracing".into()])
        );
    }

    #[test]
    fn what_is_not_honoured_is_named() {
        let of = |provider: &str| {
            let text = format!("extensionProviders: [{{name: otel, {provider}}}]\n{ON}");
            let (traces, told) = read(&text);
            (traces.is_some(), told.join(" "))
        };
        let none = "defaultProviders.tracing";
        for (provider, counts, expect) in [
            ("zipkin: {service: z, port: 9411}", false, "[0].zipkin"),
            ("datadog: {}", false, "[0].datadog"),
            ("skywalking: {}", false, "[0].skywalking"),
            (
                "opentelemetry: {service: o, port: 4318, http: {path: /v1/traces}}",
                false,
                "[0].opentelemetry.http",
            ),
            (
                "opentelemetry: {service: o, port: 4317, maxTagLength: 9}",
                true,
                "[0].opentelemetry.maxTagLength",
            ),
            (
                "opentelemetry: {port: 4317}",
                false,
                "[0].opentelemetry.service",
            ),
            (
                "opentelemetry: {service: 'a b', port: 4317}",
                false,
                "[0].opentelemetry.service",
            ),
            (
                "opentelemetry: {service: o}",
                false,
                "[0].opentelemetry.port",
            ),
            (
                "opentelemetry: {service: o, port: 65536}",
                false,
                "[0].opentelemetry.port",
            ),
        ] {
            let mut told = format!("extensionProviders{expect}");
            if !counts {
                told = format!("{told} {none}");
            }
            assert_eq!(of(provider), (counts, told), "{provider}");
        }
        let (traces, told) = read(&format!(
            "{PROVIDER}defaultProviders: {{tracing: [otel, b]}}\n\
             defaultConfig: {{tracing: {{sampling: 101, zipkin: {{}}}}}}"
        ));
        assert_eq!(traces.unwrap().per_million, 10_000);
        let expect = [
            "defaultConfig.tracing.zipkin",
            "defaultConfig.tracing.sampling",
            "defaultProviders.tracing",
        ];
        assert_eq!(told, expect);
        for text in ["extensionProviders: [x]", "extensionProviders: [{name: x}]"] {
            assert_eq!(read(text).1, ["extensionProviders[0]"]);
        }
    }

    #[test]
    fn a_service_may_be_written_with_its_namespace() {
        let text = PROVIDER.replace("otel.obs", "obs/otel.obs");
        let (traces, _) = read(&format!("{text}{ON}"));
        assert_eq!(traces.unwrap().host, "otel.obs.svc.cluster.local");
    }
}
