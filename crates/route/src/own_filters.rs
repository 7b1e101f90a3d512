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
