//! What the name of an environment says: `sdk_beta` and `beta_sdk` are the tier `beta` of the service `sdk`, `beta` is the
//! tier alone. A name without a tier says nothing, and is fine.

/// How names are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub separator: String,
    pub tiers: Vec<String>,
}

impl Default for Rule {
    fn default() -> Rule {
        let tiers = ["dev", "test", "beta", "gray", "pre", "online", "prod"];
        Rule { separator: "_".into(), tiers: tiers.map(str::to_owned).to_vec() }
    }
}

/// What was read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Named {
    pub service: Option<String>,
    pub tier: Option<String>,
}

/// Both ends of the name are tiers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the name `{name}` may mean tier `{first}` or tier `{last}`: give it a name with one tier, or write `tier:` and \
     `service:` beside it"
)]
pub struct Ambiguous {
    pub name: String,
    pub first: String,
    pub last: String,
}

impl Rule {
    /// Reads a name.
    pub fn read(&self, name: &str) -> Result<Named, Ambiguous> {
        let is_tier = |t: &str| self.tiers.iter().any(|x| x == t);
        if is_tier(name) {
            return Ok(Named { service: None, tier: Some(name.into()) });
        }
        if self.separator.is_empty() {
            return Ok(Named::default());
        }
        let front = name.split_once(&self.separator).filter(|(t, s)| is_tier(t) && !s.is_empty());
        let back = name.rsplit_once(&self.separator).filter(|(s, t)| is_tier(t) && !s.is_empty());
        let named = |service: &str, tier: &str| Named { service: Some(service.into()), tier: Some(tier.into()) };
        match (front, back) {
            (Some((first, _)), Some((_, last))) => {
                Err(Ambiguous { name: name.into(), first: first.into(), last: last.into() })
            }
            (Some((tier, service)), None) => Ok(named(service, tier)),
            (None, Some((service, tier))) => Ok(named(service, tier)),
            (None, None) => Ok(Named::default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_orders_mean_the_same_and_two_tiers_mean_nothing() {
        let rule = Rule::default();
        let read = |n: &str| rule.read(n).map(|n| (n.service, n.tier));
        let pair = |s: Option<&str>, t: Option<&str>| Ok((s.map(str::to_owned), t.map(str::to_owned)));
        assert_eq!(read("sdk_beta"), pair(Some("sdk"), Some("beta")));
        assert_eq!(read("beta_sdk"), pair(Some("sdk"), Some("beta")));
        assert_eq!(read("beta"), pair(None, Some("beta")));
        assert_eq!(read("pay_gate_online"), pair(Some("pay_gate"), Some("online")));
        assert_eq!(read("web-beta"), pair(None, None), "another separator");
        assert_eq!(read("_beta"), pair(None, None), "no service");
        assert_eq!(read("staging"), pair(None, None));
        let e = rule.read("beta_online").expect_err("two tiers").to_string();
        assert!(e.contains("tier `beta` or tier `online`") && e.contains("`tier:`"), "{e}");
        let dashed = Rule { separator: "-".into(), tiers: vec!["live".into()] };
        assert_eq!(dashed.read("web-live").map(|n| n.tier), Ok(Some("live".into())));
    }
}
