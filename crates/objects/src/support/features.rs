//! Every field of the objects that steer traffic, and whether it is honoured: derived from the table
//! that puts the status on objects, so that the two cannot tell different stories.

use serde::Serialize;

use super::gaps;
use super::rows::{
    DESTINATION_RULE, HTTP_ROUTE, ISTIO_GATEWAY, SERVICE_ENTRY, TLS_ROUTE, VIRTUAL_SERVICE,
    WORKLOAD_ENTRY,
};
use crate::kinds::{GATEWAY_GROUP, ISTIO_NETWORKING, Kind};

/// How a field stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Honoured, and a test shows it.
    Works,
    /// Honoured, and no test is named that shows it.
    Untested,
    /// Honoured but for what the note says.
    InPart,
    /// Accepted, and a status on the object says that it is not honoured.
    NotHonoured,
    /// Means nothing: no implementation of the mesh has it.
    NotApplicable,
}

/// One field of one kind of object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Feature {
    /// The kind, as in `kind:`.
    pub kind: &'static str,
    /// API group of the kind.
    pub group: &'static str,
    /// The field below `spec`; `[]` stands for every item of a list.
    pub field: &'static str,
    /// How much it matters: A, B or C.
    pub priority: char,
    /// What it does.
    pub means: &'static str,
    /// How it stands.
    pub state: State,
    /// What is missing, or why it does not apply; may be empty.
    pub note: &'static str,
    /// Tests that show it: a function's name, or `FILE/NAME` of a differential configuration.
    pub shown_by: &'static [&'static str],
}

/// A row of the table before its state is known.
pub(super) struct Row {
    pub(super) field: &'static str,
    pub(super) priority: char,
    pub(super) means: &'static str,
    pub(super) shown_by: &'static [&'static str],
    pub(super) note: &'static str,
    pub(super) applies: bool,
}

struct Table {
    kind: &'static str,
    group: &'static str,
    rows: &'static [Row],
}

const TABLES: &[Table] = &[
    Table {
        kind: "VirtualService",
        group: ISTIO_NETWORKING,
        rows: VIRTUAL_SERVICE,
    },
    Table {
        kind: "DestinationRule",
        group: ISTIO_NETWORKING,
        rows: DESTINATION_RULE,
    },
    Table {
        kind: "Gateway",
        group: ISTIO_NETWORKING,
        rows: ISTIO_GATEWAY,
    },
    Table {
        kind: "ServiceEntry",
        group: ISTIO_NETWORKING,
        rows: SERVICE_ENTRY,
    },
    Table {
        kind: "WorkloadEntry",
        group: ISTIO_NETWORKING,
        rows: WORKLOAD_ENTRY,
    },
    Table {
        kind: "HTTPRoute, GRPCRoute",
        group: GATEWAY_GROUP,
        rows: HTTP_ROUTE,
    },
    Table {
        kind: "TLSRoute, TCPRoute",
        group: GATEWAY_GROUP,
        rows: TLS_ROUTE,
    },
];

/// Every field, in the order of the page.
#[must_use]
pub fn features() -> Vec<Feature> {
    let mut all = Vec::new();
    for table in TABLES {
        let first = table.kind.split(',').next().unwrap_or(table.kind);
        let kind = Kind::find(table.group, first);
        for row in table.rows {
            all.push(Feature {
                kind: table.kind,
                group: table.group,
                field: row.field,
                priority: row.priority,
                means: row.means,
                state: state(kind, row, table.rows),
                note: row.note,
                shown_by: row.shown_by,
            });
        }
    }
    all
}

fn state(kind: Option<Kind>, row: &Row, rows: &[Row]) -> State {
    if !row.applies {
        return State::NotApplicable;
    }
    // A kind that is not read honours nothing; the object's status says so as a whole.
    let Some(kind) = kind else {
        return State::NotHonoured;
    };
    let own = format!("spec.{}", row.field);
    let gaps = gaps(kind);
    let covered = gaps.iter().any(|gap| is_below(&own, gap));
    // What has a row of its own and matters little says so there, not at everything above it.
    let told_there = |gap: &str| {
        let field = gap.strip_prefix("spec.").unwrap_or(gap);
        let field = field.strip_prefix("subsets[].").unwrap_or(field);
        let mut minor = rows
            .iter()
            .filter(|one| one.priority == 'C' || !one.applies);
        minor.any(|one| is_below(field, one.field) && one.field != row.field)
    };
    let mut inner = gaps.iter().filter(|gap| is_below(gap, &own));
    let in_part = inner.any(|gap| row.priority == 'C' || !told_there(gap));
    match (covered, in_part, row.note.is_empty()) {
        (true, _, true) => State::NotHonoured,
        (true, _, false) | (_, true, _) => State::InPart,
        _ if !row.note.is_empty() => State::InPart,
        _ if row.shown_by.is_empty() => State::Untested,
        _ => State::Works,
    }
}

/// True if `path` is `above` or a field in it.
fn is_below(path: &str, above: &str) -> bool {
    path.strip_prefix(above)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(field: &'static str, note: &'static str) -> Row {
        Row {
            field,
            priority: 'A',
            means: "",
            shown_by: &["a_test"],
            note,
            applies: true,
        }
    }

    #[test]
    fn the_state_follows_from_what_objects_are_told() {
        let of = |field, note| state(Some(Kind::AuthorizationPolicy), &row(field, note), &[]);
        assert_eq!(of("rules[].to[].operation.paths", ""), State::Works);
        assert_eq!(of("provider", ""), State::NotHonoured);
        assert_eq!(of("provider.name", ""), State::NotHonoured);
        assert_eq!(of("rules[].from[].source", ""), State::InPart);
        assert_eq!(of("action", "no CUSTOM"), State::InPart);
        assert_eq!(state(None, &row("x", ""), &[]), State::NotHonoured);
        let untested = Row {
            shown_by: &[],
            ..row("rules[].to", "")
        };
        let kind = Some(Kind::AuthorizationPolicy);
        assert_eq!(state(kind, &untested, &[]), State::Untested);
    }

    #[test]
    fn what_is_told_of_a_minor_field_is_not_told_again_of_all_above_it() {
        let of = |minor: Row| {
            let rows = [minor];
            state(Some(Kind::DestinationRule), &row("subsets", ""), &rows)
        };
        // Of the fields that are not honoured one has a row of its own here, and the others none.
        assert_eq!(of(row("trafficPolicy.tunnel", "")), State::InPart);
        let minor = |priority| Row {
            priority,
            ..row("trafficPolicy", "")
        };
        assert_eq!(of(minor('C')), State::Works);
        assert_eq!(of(minor('B')), State::InPart);
    }

    #[test]
    fn every_gap_has_a_row() {
        let all = features();
        for (kind, name) in [
            (Kind::VirtualService, "VirtualService"),
            (Kind::DestinationRule, "DestinationRule"),
        ] {
            for gap in gaps(kind) {
                let mut rows = all.iter().filter(|feature| feature.kind == name);
                let told = rows.any(|row| {
                    let own = format!("spec.{}", row.field);
                    own == gap || is_below(&own, &gap) || is_below(&gap, &own)
                });
                // The settings of subsets have one row for all.
                assert!(told || gap.starts_with("spec.subsets[]."), "{gap}");
            }
        }
    }
}
