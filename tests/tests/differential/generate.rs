//! Random routes and requests over a small alphabet, so that they meet often.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use crate::scenario::{Answer, Case, Configuration};

const SEGMENTS: [&str; 6] = ["a", "b", "A", "api", "x.y", "1"];
const HEADERS: [&str; 4] = ["x-one", "x-two", "X-Three", "user-agent"];
const VALUES: [&str; 5] = ["red", "Red", "blue", "", "red,blue"];
const METHODS: [&str; 5] = ["GET", "POST", "PUT", "DELETE", "OPTIONS"];
const HOSTS: [&str; 4] = ["svc", "svc.shop", "svc:8080", "example.com:81"];
/// Values of header edits, plain and made of what is known.
const TEXTS: [&str; 6] = [
    "1",
    "2",
    "%REQ(x-one)%",
    "<%REQ(x-two?x-one):3%>",
    "%PROTOCOL%",
    "%%",
];
/// Statuses that back ends answer with, one after the other.
const ANSWERS: [u16; 6] = [200, 404, 409, 500, 502, 503];
const RETRY_ON: [&str; 8] = [
    "",
    "5xx",
    "503",
    "gateway-error",
    "retriable-4xx",
    "404,5xx",
    "connect-failure,refused-stream",
    "reset,retriable-status-codes,502",
];
const REGEXES: [&str; 6] = ["/a/.*", "/(a|b)", ".*1", "/[a-z]+/?", "/A.*y", "r.d"];

struct Dice(StdRng);

/// As many configurations as asked for; the same seed gives the same ones.
pub(crate) fn configurations(seed: u64, count: usize, requests: usize) -> Vec<Configuration> {
    let all = (0..count).map(|index| {
        // Each has dice of its own: one more draw in the first does not change the others.
        let mut dice = Dice(StdRng::seed_from_u64(seed + index as u64));
        dice.configuration(index, requests)
    });
    all.collect()
}

impl Dice {
    fn one_in(&mut self, n: u32) -> bool {
        self.0.random_range(0..n) == 0
    }

    fn up_to(&mut self, n: usize) -> usize {
        self.0.random_range(0..=n)
    }

    fn pick<'a>(&mut self, all: &[&'a str]) -> &'a str {
        all[self.0.random_range(0..all.len())]
    }

    fn configuration(&mut self, index: usize, requests: usize) -> Configuration {
        match index % 4 {
            // Copies are waited for, so every rule makes as many.
            1 => self.copied(index, requests),
            2 => self.policed(index, requests),
            _ => self.plain(index, requests),
        }
    }

    fn plain(&mut self, index: usize, requests: usize) -> Configuration {
        let rules = 1 + self.up_to(5);
        let http: Vec<Value> = (0..rules).map(|at| self.rule(at)).collect();
        let cases: Vec<Case> = (0..requests).map(|at| self.case(at)).collect();
        Configuration {
            name: format!("generated/{index}"),
            http,
            cases,
            ..Configuration::default()
        }
    }

    /// Every request is forwarded, with one copy.
    fn copied(&mut self, index: usize, requests: usize) -> Configuration {
        let rules = 1 + self.up_to(4);
        let mut http = Vec::new();
        for at in 0..=rules {
            let mut rule = json!({"name": format!("rule-{at}")});
            if at < rules {
                rule["match"] = json!([self.block()]);
            }
            self.forward(&mut rule);
            if let Some(rule) = rule.as_object_mut() {
                rule.remove("fault");
                // Copies and tries would be told apart by their number only.
                rule.insert("retries".to_owned(), json!({"attempts": 0}));
            }
            rule["mirror"] = json!({"host": "svc", "subset": self.pick(&["v1", "v2"])});
            http.push(rule);
        }
        let cases = (0..requests).map(|at| {
            let mut case = self.case(at);
            case.copies = 1;
            case.answers.clear();
            case
        });
        Configuration {
            name: format!("generated/mirrors {index}"),
            cases: cases.collect(),
            http,
            ..Configuration::default()
        }
    }

    /// Policies on headers, paths and methods before the rules.
    fn policed(&mut self, index: usize, requests: usize) -> Configuration {
        let count = 1 + self.up_to(2);
        let policies = (0..count).map(|_| self.policy()).collect();
        let mut made = self.plain(index, requests);
        for case in &mut made.cases {
            // DENY looks at the parts between commas too, which Envoy does not.
            case.headers.retain(|(_, value)| !value.contains(','));
        }
        Configuration {
            name: format!("generated/policies {index}"),
            policies,
            ..made
        }
    }

    fn policy(&mut self) -> Value {
        let rules: Vec<Value> = (0..=self.up_to(2)).map(|_| self.policy_rule()).collect();
        json!({"action": self.pick(&["ALLOW", "DENY", "DENY"]), "rules": rules})
    }

    fn policy_rule(&mut self) -> Value {
        let mut rule = json!({});
        if !self.one_in(4) {
            let name = self.pick(&["x-one", "x-two", "x-three"]);
            let field = self.pick(&["values", "values", "notValues"]);
            let value = self.pick(&["red", "Red", "re*", "*ue", "*"]);
            rule["when"] = json!([{"key": format!("request.headers[{name}]"), field: [value]}]);
        }
        if self.one_in(2) {
            let mut operation = json!({});
            match self.up_to(2) {
                0 => operation["paths"] = json!([self.pick(&["/a", "/a/*", "*/b", "/api*"])]),
                1 => operation["methods"] = json!([self.pick(&METHODS)]),
                _ => operation["notMethods"] = json!([self.pick(&METHODS)]),
            }
            rule["to"] = json!([{"operation": operation}]);
        }
        rule
    }

    fn path(&mut self) -> String {
        let mut path = String::new();
        for _ in 0..self.up_to(3) {
            path.push('/');
            path.push_str(self.pick(&SEGMENTS));
        }
        if path.is_empty() || self.one_in(5) {
            path.push('/');
        }
        path
    }

    fn text_match(&mut self, of: &[&str]) -> Value {
        let value = self.pick(of).to_owned();
        match self.up_to(5) {
            0 | 1 => json!({"exact": if value.is_empty() { "red" } else { value.as_str() }}),
            2 | 3 => {
                let end = value.len().min(2);
                let prefix = value.get(..end).filter(|p| !p.is_empty());
                json!({"prefix": prefix.unwrap_or("r")})
            }
            4 => json!({"regex": self.pick(&["r.d", "(red|blue).*", "[A-Z].*", ".+"])}),
            _ => json!({}),
        }
    }

    fn uri_match(&mut self) -> Value {
        match self.up_to(4) {
            0 | 1 => json!({"exact": self.path()}),
            2 | 3 => json!({"prefix": self.path()}),
            _ => json!({"regex": self.pick(&REGEXES)}),
        }
    }

    fn block(&mut self) -> Value {
        let mut block = json!({});
        if !self.one_in(4) {
            block["uri"] = self.uri_match();
            if self.one_in(4) {
                block["ignoreUriCase"] = json!(true);
            }
        }
        if self.one_in(3) {
            let name = self.pick(&HEADERS).to_lowercase();
            block["headers"] = json!({name: self.text_match(&VALUES)});
        }
        if self.one_in(5) {
            let name = self.pick(&HEADERS).to_lowercase();
            block["withoutHeaders"] = json!({name: self.text_match(&VALUES)});
        }
        if self.one_in(5) {
            let mut wanted = self.text_match(&VALUES);
            if wanted == json!({}) {
                wanted = json!({"exact": "red"});
            }
            block["queryParams"] = json!({(self.pick(&["q", "r"])): wanted});
        }
        if self.one_in(5) {
            block["method"] = json!({"exact": self.pick(&METHODS)});
        }
        if self.one_in(6) {
            block["authority"] = json!({"prefix": self.pick(&["svc", "SVC", "exa"])});
        }
        block
    }

    fn edits(&mut self) -> Value {
        let mut edits = json!({});
        for kind in ["set", "add"] {
            if self.one_in(2) {
                edits[kind] = json!({(self.pick(&["x-one", "x-new", "x-two"])): self.pick(&TEXTS)});
            }
        }
        if self.one_in(3) {
            edits["remove"] = json!([self.pick(&["x-one", "x-two", "x-gone"])]);
        }
        edits
    }

    fn destination(&mut self) -> Value {
        match self.up_to(4) {
            0 | 1 => json!({"host": "svc", "subset": "v1"}),
            2 => json!({"host": "svc", "subset": "v2"}),
            3 => json!({"host": "other"}),
            _ => json!({"host": "other.shop.svc.cluster.local"}),
        }
    }

    fn rule(&mut self, at: usize) -> Value {
        let mut rule = json!({"name": format!("rule-{at}")});
        let blocks = self.up_to(3);
        if blocks > 0 {
            rule["match"] = (0..blocks).map(|_| self.block()).collect();
        }
        match self.up_to(9) {
            0 => {
                rule["redirect"] = json!({"uri": self.path(), "redirectCode": 302});
                if self.one_in(2) {
                    rule["redirect"]["authority"] = json!("new.example");
                }
            }
            1 => rule["directResponse"] = json!({"status": 418, "body": {"string": "teapot"}}),
            _ => self.forward(&mut rule),
        }
        // Where these differ from Envoy is written down with the written scenarios.
        let route = rule.get("route").and_then(Value::as_array);
        let own_edits = route.is_some_and(|route| {
            let edits = route.iter().any(|one| one.get("headers").is_some());
            edits || route.len() > 1
        });
        if !own_edits && self.one_in(3) {
            rule["headers"] = json!({"response": self.edits()});
            if rule.get("route").is_some() {
                rule["headers"]["request"] = self.edits();
            }
        }
        rule
    }

    fn forward(&mut self, rule: &mut Value) {
        let mut first = json!({"destination": self.destination()});
        if self.one_in(4) {
            first["headers"] = json!({"request": self.edits(), "response": self.edits()});
        }
        let mut route = vec![first];
        if self.one_in(4) {
            // All to one of two: whoever draws, the outcome is the same.
            route[0]["weight"] = json!(100);
            route.push(json!({"destination": self.destination(), "weight": 0}));
        }
        rule["route"] = json!(route);
        if self.one_in(3) {
            rule["rewrite"] = match self.up_to(3) {
                0 => json!({"uri": self.path(), "authority": "rewritten.example"}),
                1 => json!({"authority": "rewritten.example"}),
                2 => json!({"uriRegexRewrite": {"match": "/([a-z]+)", "rewrite": r"/-\1-"}}),
                _ => json!({"uri": self.path()}),
            };
        }
        if self.one_in(2) {
            let (on, attempts) = (self.pick(&RETRY_ON), self.up_to(3));
            // None, and everything else about them has to be absent.
            rule["retries"] = json!({"attempts": attempts});
            if attempts > 0 {
                rule["retries"]["backoff"] = json!("1ms");
            }
            if attempts > 0 && !on.is_empty() {
                rule["retries"]["retryOn"] = json!(on);
            }
        }
        if self.one_in(6) {
            let status = [403, 503][self.up_to(1)];
            rule["fault"] = json!({"abort": {"httpStatus": status, "percentage": {"value": 100}}});
        }
    }

    fn case(&mut self, at: usize) -> Case {
        let mut target = self.path();
        if self.one_in(3) {
            target.push('?');
            target.push_str(self.pick(&["q=red", "q=blue&r=red", "q", "r=Red&q=", "q=red&q=blue"]));
        }
        let mut headers = Vec::new();
        for name in HEADERS {
            if self.one_in(2) {
                headers.push((name.to_lowercase(), self.pick(&VALUES).to_owned()));
            }
        }
        let method = self.pick(&METHODS);
        let mut case = Case::from_line(&format!("{method} {target}"));
        case.name = format!("{at} {method} {target} {headers:?}");
        case.headers = headers;
        case.host = self.pick(&HOSTS).to_owned();
        if method != "GET" && self.one_in(2) {
            case.body = "content".to_owned();
        }
        if self.one_in(4) {
            case.protocol = crate::scenario::Protocol::Http2;
        }
        if self.one_in(2) {
            let count = 1 + self.up_to(2);
            let statuses = (0..count).map(|_| ANSWERS[self.up_to(ANSWERS.len() - 1)]);
            case.answers = statuses
                .map(|status| Answer {
                    status,
                    ..Answer::default()
                })
                .collect();
        }
        case
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_one_set_of_cases() {
        let names = |seed| {
            let all = configurations(seed, 2, 5);
            let cases = all.into_iter().flat_map(|c| c.cases);
            cases.map(|case| case.name).collect::<Vec<_>>()
        };
        assert_eq!(names(7), names(7));
        assert_ne!(names(7), names(8));
    }
}
