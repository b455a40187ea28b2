//! What a plan holds of secrets and outputs: references, in the places where they may be.

use super::*;
use crate::reference::{self, Reference};

fn flow(step: &str) -> String {
    format!(
        "flow: web\ninputs:\n  token: {{ type: secret, optional: true }}\n  where: {{ type: string, default: x }}\nsteps:\n  \
         - id: out\n    waves: '100%'\n    steps:\n      - {{ id: one, uses: script, with: {{ run: 'true' }} }}\n      - {step}\n"
    )
}

fn refused(w: &World) -> String {
    w.build(None).expect_err("refused").to_string()
}

#[test]
fn plans_and_specs_hold_references_only() {
    let step = "{ id: two, uses: script, with: { run: 'true', env: { A: 'x ${{ secrets.db-password }} ${{ inputs.token }}', \
                B: '${{ host.name }} ${{ secrets.other }}' }, stdin: '${{ steps.one.outputs.key }}' } }";
    let mut w = world(&flow(step), 2);
    w.release.inputs.insert("token".into(), reference::secret_input("token"));
    let plan = w.build(None).expect("plans");
    let spec = plan.task_spec("out", 1).expect("spec");
    let with = Value::Object(spec.steps[1].with.clone());
    let secret = |name: &str| Reference::Secret { name: name.into() };
    let own = Reference::Output { step: "one".into(), path: vec!["key".into()] };
    assert_eq!(reference::scan(&with), [secret("db-password"), secret("input.token"), secret("other"), own]);
    let text = with["env"]["A"].as_str().expect("text");
    assert_eq!(text, "x \u{FDD0}secret:db-password\u{FDD1} \u{FDD0}secret:input.token\u{FDD1}");
    assert_eq!(with["env"]["B"], json!("web-1 \u{FDD0}secret:other\u{FDD1}"));
}

/// The parser tells most of these earlier; a secret input reaches every place where a text may be.
#[test]
fn a_secret_may_not_stand_where_it_would_be_seen() {
    for (step, place) in [
        ("{ id: two, uses: script, with: { run: 'true', args: ['${{ inputs.token }}'] } }", "`args`"),
        ("{ id: two, uses: script, with: { run: 'true', args: ['${{ host.name + inputs.token }}'] } }", "`args`"),
        ("{ id: two, uses: file.put, with: { path: 'a/${{ inputs.token }}', content: x } }", "`path`"),
        ("{ id: two, uses: http.check, with: { url: 'http://h/${{ inputs.token }}' } }", "`url`"),
    ] {
        let Ok(parsed) = crate::flow::parse(&flow(step)) else { continue };
        let mut w = world(&flow("{ id: two, uses: script, with: { run: 'true' } }"), 1);
        w.release.flow = parsed;
        w.release.inputs.insert("token".into(), reference::secret_input("token"));
        let text = refused(&w);
        assert!(text.contains(place), "{step}: {text}");
    }
}

#[test]
fn nothing_people_write_may_look_like_a_reference() {
    let forged = "\u{FDD0}secret:db-password\u{FDD1}";
    let plain = flow("{ id: two, uses: script, with: { run: 'true', env: { A: '${{ inputs.where }}' } } }");
    let mut w = world(&plain, 1);
    w.release.inputs.insert("where".into(), json!(forged));
    assert!(refused(&w).contains("inputs.where holds the character U+FDD0"), "{}", refused(&w));
    let mut w = world(&plain, 1);
    w.hosts[0].values.insert("k".into(), json!([forged]));
    assert!(refused(&w).contains("values.k[0] holds"), "{}", refused(&w));
    let mut w = world(&plain, 1);
    w.environment.values.insert("k".into(), json!(forged));
    assert!(refused(&w).contains("env.k holds"), "{}", refused(&w));
    if let Ok(flow) = crate::flow::parse(&plain.replace("run: 'true'", &format!("run: 'true # {forged}'"))) {
        let mut w = world(&plain, 1);
        w.release.flow = flow;
        assert!(refused(&w).contains("the flow"), "{}", refused(&w));
    }
}
