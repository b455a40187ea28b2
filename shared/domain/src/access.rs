//! Who may do what: roles on project groups, permissions on routes.

use serde::{Deserialize, Serialize};

/// What a route or subject asks for. A grant on group `*` holds for every group; things that belong to no project (hosts,
/// channels, policies, people) ask for the permission on `*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Permission {
    /// Read deployments, logs, plans, the trigger log.
    View,
    /// Register artifacts, make releases, request deployments, cancel what has not started.
    Trigger,
    Approve,
    /// Pause, resume, confirm, retry, skip, ignore, exclude, abort, roll back.
    Operate,
    /// Settle an unknown host by a person's word; free a lock.
    Override,
    /// Write the catalog.
    Define,
    /// People, grants, tokens, secrets, enrolment.
    Admin,
    /// Read the audit trail and export it.
    Audit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Viewer,
    Developer,
    Approver,
    Operator,
    Admin,
}

impl Permission {
    pub const ALL: [Permission; 8] = [
        Permission::View,
        Permission::Trigger,
        Permission::Approve,
        Permission::Operate,
        Permission::Override,
        Permission::Define,
        Permission::Admin,
        Permission::Audit,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Permission::View => "view",
            Permission::Trigger => "trigger",
            Permission::Approve => "approve",
            Permission::Operate => "operate",
            Permission::Override => "override",
            Permission::Define => "define",
            Permission::Admin => "admin",
            Permission::Audit => "audit",
        }
    }
}

impl Role {
    pub const ALL: [Role; 5] = [Role::Viewer, Role::Developer, Role::Approver, Role::Operator, Role::Admin];

    pub fn as_str(self) -> &'static str {
        match self {
            Role::Viewer => "viewer",
            Role::Developer => "developer",
            Role::Approver => "approver",
            Role::Operator => "operator",
            Role::Admin => "admin",
        }
    }

    /// The whole table of rights. Approving and operating are apart on purpose: who presses the buttons does not sign.
    pub fn allows(self, p: Permission) -> bool {
        use Permission::*;
        match self {
            Role::Viewer => matches!(p, View),
            Role::Developer => matches!(p, View | Trigger),
            Role::Approver => matches!(p, View | Approve),
            Role::Operator => matches!(p, View | Trigger | Operate | Override),
            Role::Admin => true,
        }
    }
}

impl std::str::FromStr for Role {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Role::ALL
            .into_iter()
            .find(|r| r.as_str() == s)
            .ok_or_else(|| format!("unknown role {s:?}: use viewer, developer, approver, operator or admin"))
    }
}

/// One role on one project group (`*`: every group).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    pub project_group: String,
    pub role: Role,
}

/// Who is asking, with everything that limits them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    pub person: String,
    pub grants: Vec<Grant>,
    /// The token's scopes; empty means all that the person may do.
    pub scopes: Vec<Permission>,
    /// The token works for this project only.
    pub only_project: Option<String>,
}

/// What is acted on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target<'a> {
    /// Belongs to no project.
    Global,
    Project {
        name: &'a str,
        group: &'a str,
    },
}

impl Actor {
    /// The one decision point.
    pub fn may(&self, p: Permission, target: Target<'_>) -> bool {
        if !self.scopes.is_empty() && !self.scopes.contains(&p) {
            return false;
        }
        let group = match (target, &self.only_project) {
            (Target::Global, Some(_)) => return false,
            (Target::Global, None) => "*",
            (Target::Project { name, .. }, Some(only)) if only != name => return false,
            (Target::Project { group, .. }, _) => group,
        };
        self.grants.iter().any(|g| (g.project_group == "*" || g.project_group == group) && g.role.allows(p))
    }

    /// May do this somewhere: for lists, which then show only what [`Actor::may`] allows row by row.
    pub fn may_somewhere(&self, p: Permission) -> bool {
        (self.scopes.is_empty() || self.scopes.contains(&p)) && self.grants.iter().any(|g| g.role.allows(p))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn actor(group: &str, role: Role) -> Actor {
        Actor {
            person: "ann".into(),
            grants: vec![Grant { project_group: group.into(), role }],
            scopes: vec![],
            only_project: None,
        }
    }

    #[test]
    fn a_grant_reaches_its_group_and_nothing_else() {
        let shop = Target::Project { name: "shop", group: "retail" };
        let bank = Target::Project { name: "bank", group: "money" };
        let a = actor("retail", Role::Admin);
        assert!(a.may(Permission::Define, shop));
        assert!(!a.may(Permission::View, bank));
        assert!(!a.may(Permission::View, Target::Global));
        assert!(actor("*", Role::Viewer).may(Permission::View, bank));
    }

    #[test]
    fn a_token_only_narrows() {
        let shop = Target::Project { name: "shop", group: "retail" };
        let mut a = actor("*", Role::Admin);
        a.scopes = vec![Permission::Trigger];
        assert!(a.may(Permission::Trigger, shop));
        assert!(!a.may(Permission::Approve, shop));
        a.only_project = Some("bank".into());
        assert!(!a.may(Permission::Trigger, shop));
        assert!(!a.may(Permission::Trigger, Target::Global));
        let mut v = actor("*", Role::Viewer);
        v.scopes = Permission::ALL.to_vec();
        assert!(!v.may(Permission::Approve, shop));
    }

    #[test]
    fn nobody_but_admin_both_operates_and_approves() {
        for r in Role::ALL {
            let both = r.allows(Permission::Operate) && r.allows(Permission::Approve);
            assert_eq!(both, r == Role::Admin, "{r:?}");
        }
    }
}
