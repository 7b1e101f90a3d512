use std::sync::Arc;

use isobar_proto::isobar::v1 as proto;

use crate::action::{Mirror, Redirect, Rewrite, Weighted};
use crate::external_auth::ExternalAuth;
use crate::rate_limit::RateLimits;
use crate::virtual_service::{
    FieldError, compile_limits, compile_mirrors, compile_redirect, compile_rewrite,
};

/// What is done with requests for one destination of a rule.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct OwnFilters {
    /// In place of the rule's.
    pub rewrite: Option<Rewrite>,
    /// The caller is sent there, and nothing goes to the destination.
    pub redirect: Option<Redirect>,
    /// Copies besides the rule's.
    pub mirrors: Vec<Mirror>,
    /// Authorisers that are asked after the rule's.
    pub external_auth: Vec<ExternalAuth>,
    /// Limits that requests count in besides others.
    pub limits: Vec<Arc<RateLimits>>,
}

impl OwnFilters {
    /// What is for one destination only, if anything is.
    pub(crate) fn compile(
        from: &proto::WeightedDestination,
    ) -> Result<Option<Box<Self>>, FieldError> {
        let rewrite = from.rewrite.as_ref();
        let made = Self {
            rewrite: rewrite.map(|r| compile_rewrite(Some(r))).transpose()?,
            redirect: from.redirect.as_ref().map(compile_redirect).transpose()?,
            mirrors: compile_mirrors(&from.mirrors)?,
            external_auth: ExternalAuth::compile_all(&from.external_auth, "externalAuth")?,
            limits: compile_limits(&from.rate_limits)?,
        };
        Ok((made != Self::default()).then(|| Box::new(made)))
    }
}

impl Weighted {
    /// Changes before forwarding, where they are not the rule's.
    #[must_use]
    pub fn rewrite(&self) -> Option<&Rewrite> {
        self.own.as_ref()?.rewrite.as_ref()
    }

    /// Where callers are sent in place of the destination.
    #[must_use]
    pub fn redirect(&self) -> Option<&Redirect> {
        self.own.as_ref()?.redirect.as_ref()
    }

    /// Copies besides the rule's.
    #[must_use]
    pub fn mirrors(&self) -> &[Mirror] {
        self.own.as_ref().map_or(&[], |own| &own.mirrors)
    }

    /// Authorisers that are asked after the rule's.
    #[must_use]
    pub fn external_auth(&self) -> &[ExternalAuth] {
        self.own.as_ref().map_or(&[], |own| &own.external_auth)
    }

    /// Limits that requests count in besides others.
    #[must_use]
    pub fn limits(&self) -> &[Arc<RateLimits>] {
        self.own.as_ref().map_or(&[], |own| &own.limits)
    }
}

#[cfg(test)]
mod tests {
    use proto::external_auth::{Grpc, Protocol};
    use proto::http_route::Action as Does;

    use super::*;
    use crate::action::Action;
    use crate::virtual_service::VirtualService;

    /// One destination, as it is told and as it is compiled.
    fn compiled(to: proto::WeightedDestination) -> Weighted {
        let forward = proto::HttpForward {
            destinations: vec![to],
        };
        let route = proto::HttpRoute {
            action: Some(Does::Forward(forward)),
            ..Default::default()
        };
        let made = VirtualService::compile(&proto::VirtualService {
            namespace: "ns".into(),
            name: "vs".into(),
            http: vec![route],
            ..Default::default()
        });
        match &made.unwrap().http[0].action {
            Action::Forward(all) => all[0].clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_for_one_destination_is_kept_with_it() {
        let none = compiled(proto::WeightedDestination::default());
        assert_eq!(none.own, None);
        assert!(none.rewrite().is_none() && none.redirect().is_none());
        assert!(none.mirrors().is_empty() && none.limits().is_empty());
        assert!(none.external_auth().is_empty());

        let limits = proto::RateLimitPolicy {
            namespace: "ns".into(),
            name: "ten".into(),
            ..Default::default()
        };
        let all = compiled(proto::WeightedDestination {
            rewrite: Some(proto::HttpRewrite {
                uri: "/new".into(),
                ..Default::default()
            }),
            redirect: Some(proto::HttpRedirect {
                uri: "/there".into(),
                ..Default::default()
            }),
            mirrors: vec![proto::Mirror {
                percentage: 50.0,
                ..Default::default()
            }],
            external_auth: vec![proto::ExternalAuth {
                protocol: Some(Protocol::Grpc(Grpc::default())),
                ..Default::default()
            }],
            rate_limits: vec![limits],
            ..Default::default()
        });
        assert_eq!(all.rewrite().unwrap().uri.as_deref(), Some("/new"));
        assert_eq!(all.redirect().unwrap().uri.as_deref(), Some("/there"));
        let copies = &all.mirrors()[0];
        assert!(copies.takes(0) && !copies.takes(500_000), "{copies:?}");
        assert_eq!(all.external_auth().len(), 1);
        assert_eq!(&*all.limits()[0].name.name, "ten");
    }
}
