//! Whether a flow ships anything: a job or a switchover handles no package, and is released without one.

use super::{Flow, StepKind};

/// The actions that handle the release's package.
const HANDLE: [&str; 3] = ["artifact.fetch", "artifact.verify", "release.switch"];

impl Flow {
    /// The first step that handles the release's package; none where nothing is shipped. Of a linked flow: what a subflow does is
    /// not seen before it is put in. Rollback steps do not count: what has no package is not gone back from.
    pub fn ships(&self) -> Option<String> {
        let handles = |uses: &str| HANDLE.contains(&uses);
        self.steps.iter().find_map(|s| match &s.kind {
            StepKind::Central(call) => handles(&call.uses).then(|| s.id.clone()),
            StepKind::Rollout(r) => {
                let step = r.steps.iter().find(|h| handles(&h.call.uses))?;
                Some(format!("{}.{}", s.id, step.id))
            }
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::flow::parse;

    #[test]
    fn only_what_handles_the_package_ships() {
        let ships = |steps: &str| {
            let text = format!(
                "flow: f\nsteps: [{steps}]\nrollback: {{ normal: [{{ uses: release.switch, with: {{ to: last_known_good }} }}] }}\n"
            );
            parse(&text).unwrap_or_else(|e| panic!("{e:#?}")).ships()
        };
        assert_eq!(ships("{ id: r, waves: 1, steps: [{ uses: script, with: { run: x } }] }"), None);
        assert_eq!(ships("{ id: v, uses: artifact.verify }").as_deref(), Some("v"));
        let rollout =
            "{ id: r, waves: 1, steps: [{ uses: script, with: { run: x } }, { id: get, uses: artifact.fetch }] }";
        assert_eq!(ships(rollout).as_deref(), Some("r.get"));
    }
}
