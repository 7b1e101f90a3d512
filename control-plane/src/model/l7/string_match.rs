use isobar_objects::istio::StringMatch;
use isobar_proto::isobar::v1 as wire;
use wire::string_match::MatchType;

/// A match of a text; without any field it asks for presence.
pub(super) fn string_match(from: &StringMatch) -> wire::StringMatch {
    let kind = match (&from.exact, &from.prefix, &from.regex) {
        (Some(exact), ..) => MatchType::Exact(exact.clone()),
        (_, Some(prefix), _) => MatchType::Prefix(prefix.clone()),
        (.., Some(regex)) => MatchType::Regex(regex.clone()),
        (None, None, None) => MatchType::Present(true),
    };
    wire::StringMatch {
        match_type: Some(kind),
    }
}

/// The protobuf form of a duration; one too long for it becomes the longest.
pub(super) fn duration(from: std::time::Duration) -> prost_types::Duration {
    prost_types::Duration::try_from(from).unwrap_or(prost_types::Duration {
        seconds: i64::MAX,
        nanos: 0,
    })
}
