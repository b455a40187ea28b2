//! The JSON Schema (draft 2020-12) of the flow language, made from the same tables the parser reads by, so that editors
//! complete flows and check their shape. What spans several places (names of steps, circles, types of expressions) only
//! the parser knows.

use super::{
    actions::{ACTIONS, Action, Kind, Parameter},
    parse::words::{
        ATTACH, CONFIRMS, DRAIN, FAILURES, GATEWAYS, INCONCLUSIVE, JOINS, KINDS, MAX_EXIT_CODE, MAX_FACTOR,
        MAX_FAILURES, MAX_PARALLEL, MAX_PROBES, MAX_REPEATS, MAX_RETRIES, OVERDUE, PHASES, PROBES, RETRIED, ROLLBACKS,
    },
};
use serde_json::{Map, Value, json};

/// Where the schema is published, and its identity.
pub const SCHEMA_PATH: &str = "/api/v1/schemas/flow.json";

const NAME: &str = "^[a-z0-9][a-z0-9_-]{0,62}$";

/// The schema.
pub fn json_schema() -> Value {
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_PATH,
        "title": "Windlass flow",
        "description": "How something is released: steps, in the order their `needs` give.",
        "type": "object",
        "required": ["flow", "steps"],
        "additionalProperties": false,
        "properties": {
            "kind": { "const": "flow", "description": "In a file for `windlass apply`: what the document is." },
            "project": { "$ref": "#/$defs/name", "description": "In a file for `windlass apply`: whose flow it is." },
            "flow": { "$ref": "#/$defs/name", "description": "Name of the flow." },
            "inputs": {
                "description": "Values a person or a trigger gives when a deployment is requested: `inputs.<name>`.",
                "type": "object",
                "propertyNames": { "pattern": "^[A-Za-z][A-Za-z0-9_]{0,62}$" },
                "additionalProperties": { "$ref": "#/$defs/input" },
            },
            "on_failure": {
                "description": "What more failures than the budget bears lead to.",
                "enum": ["pause", "stop", "rollback"], "default": "pause",
            },
            "patience": {
                "description": "How long a deployment waits for a person before something happens by itself; a day, then the alarm again, when absent.",
                "type": "object", "additionalProperties": false, "required": ["within"],
                "properties": {
                    "within": { "$ref": "#/$defs/duration" },
                    "then": { "enum": words(&OVERDUE), "default": "remind", "description": "What happens then." },
                },
            },
            "outputs": {
                "description": "What a step that uses this flow as a subflow gives: templates over `inputs` and `steps`.",
                "type": "object",
            },
            "steps": {
                "description": "The steps; one starts when all it `needs` have ended as its `join` asks.",
                "type": "array", "minItems": 1, "maxItems": 200, "items": { "$ref": "#/$defs/step" },
            },
            "rollback": {
                "description": "What a rollback does on every host.",
                "type": "object", "additionalProperties": false,
                "properties": {
                    "normal": { "$ref": "#/$defs/rollback", "description": "With drain and tests; in waves of `1 *4` unless it says otherwise." },
                    "emergency": { "$ref": "#/$defs/rollback", "description": "The shortest way back; on all hosts at once unless it says otherwise." },
                    "automatic": {
                        "enum": words(&ROLLBACKS), "default": "normal",
                        "description": "The kind that `on_failure: rollback` asks for.",
                    },
                },
            },
        },
        "$defs": definitions(),
    })
}

fn definitions() -> Map<String, Value> {
    let mut defs = Map::new();
    let mut add = |name: &str, schema: Value| {
        defs.insert(name.into(), schema);
    };
    add("name", json!({ "type": "string", "pattern": NAME }));
    add("word", json!({ "type": ["string", "number", "boolean"], "description": "Text." }));
    add(
        "duration",
        json!({ "type": "string", "pattern": "^[0-9]{1,9}[smhd]$", "examples": ["30s", "5m", "1h", "7d"] }),
    );
    add(
        "expression",
        json!({
            "type": ["string", "boolean"],
            "description": "CEL that is true or false, with or without `${{ }}` around it.",
            "examples": ["inputs.restart", "host.labels.zone == 'a'", "steps.probe.outputs.status == 200"],
        }),
    );
    add(
        "template",
        json!({ "type": "string", "pattern": "\\$\\{\\{", "description": "Text with `${{ expression }}` in it." }),
    );
    add(
        "targets",
        json!({
            "description": "Ids of the steps it leads to.",
            "anyOf": [
                { "$ref": "#/$defs/name" },
                { "type": "array", "minItems": 1, "uniqueItems": true, "items": { "$ref": "#/$defs/name" } },
            ],
        }),
    );
    add("input", input());
    add("step", step());
    add("branches", branches());
    add(
        "host_steps",
        json!({ "type": "array", "minItems": 1, "maxItems": 100, "items": { "$ref": "#/$defs/host_step" } }),
    );
    add("host_step", host_step());
    add("budget", budget(true));
    add("retry", retry());
    add("bake", bake());
    add("probe", probe());
    add("rollback", rollback());
    for a in ACTIONS {
        add(&format!("with.{}", a.name), with(a));
    }
    defs
}

fn input() -> Value {
    let kinds: Vec<&str> = KINDS.iter().map(|(w, _)| *w).collect();
    let only = |kinds: &[&str], key: &str| json!({ "if": { "required": [key] }, "then": { "properties": { "type": { "enum": kinds } } } });
    let length = json!({ "type": "integer", "minimum": 0, "maximum": 1 << 20 });
    json!({
        "type": "object", "required": ["type"], "additionalProperties": false,
        "properties": {
            "type": { "enum": kinds },
            "default": { "description": "Taken when no value is given." },
            "description": { "type": "string", "description": "Shown beside the field of the form." },
            "optional": { "type": "boolean", "description": "It may be left out; then it is null." },
            "options": {
                "description": "What a choice offers.",
                "type": "array", "minItems": 1, "uniqueItems": true, "items": { "$ref": "#/$defs/word" },
            },
            "min": { "type": "number" },
            "max": { "type": "number" },
            "min_length": length,
            "max_length": length,
            "pattern": { "type": "string", "maxLength": 1024, "description": "A regular expression for the whole text." },
        },
        "allOf": [
            { "if": { "properties": { "type": { "const": "choice" } }, "required": ["type"] }, "then": { "required": ["options"] } },
            only(&["choice"], "options"),
            only(&["number"], "min"),
            only(&["number"], "max"),
            only(&["string", "secret", "file"], "min_length"),
            only(&["string", "secret", "file"], "max_length"),
            only(&["string"], "pattern"),
            only(&["string", "number", "boolean", "choice", "host_selector"], "default"),
        ],
    })
}

fn words<T>(words: &[(&str, T)]) -> Vec<String> {
    words.iter().map(|(w, _)| (*w).to_string()).collect()
}

/// Keys of a rollout alone, of what is not a gateway, and of gateways.
const OF_ROLLOUT: [&str; 9] = ["waves", "steps", "confirm", "bake", "budget", "on", "group_by", "canary", "stagger"];
const OF_CALL: [&str; 3] = ["uses", "with", "timeout"];
const NOT_OF_GATEWAY: [&str; 6] = ["if", "on_failure", "repeat", "required", "retry", "on_timeout"];

fn step() -> Value {
    let form = |required: &[&str], without: &[&[&str]], parallel: Value| {
        let mut properties: Map<String, Value> =
            without.iter().flat_map(|l| l.iter()).map(|k| ((*k).to_string(), json!(false))).collect();
        properties.insert("parallel".into(), parallel);
        json!({ "required": required, "properties": properties })
    };
    let central: Vec<&Action> = ACTIONS.iter().filter(|a| a.central()).collect();
    let names: Vec<&str> = central.iter().map(|a| a.name).collect();
    let mut all = central.iter().map(|a| with_of(a)).collect::<Vec<_>>();
    all.push(json!({
        "if": { "properties": { "uses": { "pattern": "^flow/" } }, "required": ["uses"] },
        "then": { "properties": { "timeout": false, "retry": false, "on_timeout": false } },
    }));
    let number = json!({ "type": "integer", "minimum": 0, "maximum": MAX_PARALLEL });
    let branching = ["exclusive", "conditional"];
    json!({
        "type": "object", "required": ["id"], "additionalProperties": false,
        "properties": {
            "id": { "$ref": "#/$defs/name", "description": "Its name in `needs` and in `steps.<id>.outputs`." },
            "phase": { "enum": words(&PHASES), "description": "A label: what part of the release it belongs to." },
            "needs": {
                "description": "Ids of the steps that come before.",
                "anyOf": [
                    { "$ref": "#/$defs/name" },
                    { "type": "array", "uniqueItems": true, "items": { "$ref": "#/$defs/name" } },
                ],
            },
            "join": {
                "enum": words(&JOINS), "default": "all",
                "description": "When it starts: all it needs succeeded, the first one did, or all have ended.",
            },
            "if": { "$ref": "#/$defs/expression", "description": "False skips the step, which counts as success." },
            "on_failure": {
                "enum": words(&FAILURES),
                "description": "What its failure leads to; the flow's `on_failure` when absent.",
            },
            "repeat": {
                "type": "object", "additionalProperties": false, "required": ["until", "max"],
                "description": "Runs the step again until the expression is true.",
                "properties": {
                    "until": { "$ref": "#/$defs/expression" },
                    "max": { "type": "integer", "minimum": 1, "maximum": MAX_REPEATS, "description": "Runs in all." },
                    "every": { "$ref": "#/$defs/duration", "default": "10s", "description": "Time between two runs." },
                },
            },
            "required": { "type": "boolean", "default": false, "description": "Nobody can skip it, nor ignore that it failed." },
            "retry": { "$ref": "#/$defs/retry" },
            "on_timeout": {
                "enum": words(&FAILURES),
                "description": "What it leads to when it failed by taking too long; `on_failure` when absent.",
            },
            "uses": {
                "description": "An action, `flow/<name>` (a flow of this project as a subflow) or `plugin/<name>@<version>`.",
                "anyOf": [
                    { "enum": names },
                    { "type": "string", "pattern": "^flow/[a-z0-9][a-z0-9_-]{0,62}$" },
                    { "type": "string", "pattern": "^plugin/[a-z0-9][a-z0-9_-]{0,62}(@[A-Za-z0-9.+_-]{1,64})?$" },
                ],
            },
            "with": { "type": "object", "description": "Parameters of the action." },
            "timeout": { "$ref": "#/$defs/duration" },
            "waves": {
                "type": ["string", "integer"], "examples": ["1 10% *2", "100%"],
                "description": "Hosts wave by wave: numbers, percentages and `*n`; the last part repeats.",
            },
            "steps": { "$ref": "#/$defs/host_steps", "description": "What is done on each host, in order." },
            "on": { "type": "string", "description": "Selector: only hosts with these labels.", "examples": ["role=web"] },
            "confirm": { "enum": words(&CONFIRMS), "default": "none", "description": "Which waves a person confirms." },
            "bake": { "$ref": "#/$defs/bake" },
            "group_by": {
                "type": "string", "pattern": LABEL, "examples": ["zone"],
                "description": "A label: hosts that differ in it never share a wave; the wave expression begins anew in each group.",
            },
            "canary": {
                "type": "string", "not": { "pattern": "\\$\\{\\{" }, "examples": ["canary=yes"],
                "description": "Selector: hosts with these labels go before all others, in one wave.",
            },
            "stagger": {
                "description": "Time between the starts of two hosts of a wave, and up to how much more by chance.",
                "anyOf": [
                    { "$ref": "#/$defs/duration" },
                    {
                        "type": "object", "additionalProperties": false, "minProperties": 1,
                        "properties": { "every": { "$ref": "#/$defs/duration" }, "jitter": { "$ref": "#/$defs/duration" } },
                    },
                ],
            },
            "budget": { "$ref": "#/$defs/budget" },
            "parallel": { "description": "With `waves`: hosts at a time. Alone: the steps that start side by side." },
            GATEWAYS[0].0: { "$ref": "#/$defs/branches", "description": "A gateway: the first branch whose condition is true." },
            GATEWAYS[1].0: { "$ref": "#/$defs/branches", "description": "A gateway: every branch whose condition is true." },
        },
        "oneOf": [
            form(&["uses"], &[&OF_ROLLOUT, &branching], json!(false)),
            form(&["waves", "steps"], &[&OF_CALL, &branching], number),
            form(&["exclusive"], &[&OF_ROLLOUT, &OF_CALL, &NOT_OF_GATEWAY, &["conditional"]], json!(false)),
            form(&["conditional"], &[&OF_ROLLOUT, &OF_CALL, &NOT_OF_GATEWAY, &["exclusive"]], json!(false)),
            form(&["parallel"], &[&OF_ROLLOUT, &OF_CALL, &NOT_OF_GATEWAY, &branching], json!({ "$ref": "#/$defs/targets" })),
        ],
        "allOf": all,
    })
}

const LABEL: &str = "^[A-Za-z0-9._/-]{1,253}$";

fn budget(waves: bool) -> Value {
    let mut properties = json!({
        "hosts": { "type": "integer", "minimum": 0, "maximum": 1_000_000 },
        "percent": { "anyOf": [
            { "type": "number", "minimum": 0, "maximum": 100 },
            { "type": "string", "pattern": "^[0-9]{1,3}([.][0-9]+)?%*$" },
        ] },
    });
    if waves {
        let mut wave = budget(false);
        wave["minProperties"] = json!(1);
        wave["description"] = json!("How many hosts of one wave may fail, on top.");
        properties["wave"] = wave;
    }
    json!({
        "type": "object", "additionalProperties": false, "properties": properties,
        "description": "How many hosts may fail: the smaller of the two.",
    })
}

fn retry() -> Value {
    let max = json!({ "type": "integer", "minimum": 1, "maximum": MAX_RETRIES });
    let class = json!({ "enum": words(&RETRIED) });
    let code = json!({ "type": "integer", "minimum": 1, "maximum": MAX_EXIT_CODE });
    let some =
        |item: &Value| json!({ "anyOf": [item, { "type": "array", "minItems": 1, "maxItems": 50, "items": item }] });
    json!({
        "description": "Tries on top of the first, without a person; of a rollout host by host.",
        "anyOf": [max, {
            "type": "object", "additionalProperties": false, "required": ["max"],
            "properties": {
                "max": max,
                "on": some(&class),
                "exit_codes": some(&code),
                "backoff": { "$ref": "#/$defs/duration", "default": "5s", "description": "Pause before the first of them." },
                "factor": {
                    "type": "integer", "minimum": 1, "maximum": MAX_FACTOR, "default": 2,
                    "description": "By this much longer each time.",
                },
                "max_backoff": { "$ref": "#/$defs/duration", "default": "5m", "description": "Longest pause." },
            },
        }],
    })
}

fn bake() -> Value {
    json!({
        "description": "How long each wave that went well is looked at before the next.",
        "anyOf": [{ "$ref": "#/$defs/duration" }, {
            "type": "object", "additionalProperties": false, "required": ["for"],
            "properties": {
                "for": { "$ref": "#/$defs/duration" },
                "every": { "$ref": "#/$defs/duration", "default": "30s", "description": "Time between two looks." },
                "inconclusive": {
                    "enum": words(&INCONCLUSIVE), "default": "ask",
                    "description": "What it means when no probe failed but not every one succeeded.",
                },
                "probes": {
                    "type": "array", "minItems": 1, "maxItems": MAX_PROBES, "items": { "$ref": "#/$defs/probe" },
                },
            },
            "dependentRequired": { "every": ["probes"], "inconclusive": ["probes"] },
        }],
    })
}

fn probe() -> Value {
    let names = words(&PROBES);
    let with: Vec<Value> = ACTIONS.iter().filter(|a| names.iter().any(|n| n == a.name)).map(with_of).collect();
    let judge = |text: &str| json!({ "type": "string", "description": text, "examples": ["value < 0.01", "value.ok == value.total"] });
    json!({
        "type": "object", "required": ["id", "uses"], "additionalProperties": false,
        "properties": {
            "id": { "$ref": "#/$defs/name" },
            "uses": { "enum": names, "description": "The first two are asked by the executor, the others on every host of the wave." },
            "with": { "type": "object" },
            "timeout": { "$ref": "#/$defs/duration" },
            "success": judge("CEL over `value`, what was read."),
            "fail": judge("CEL over `value`."),
            "failures": {
                "type": "integer", "minimum": 1, "maximum": MAX_FAILURES, "default": 1,
                "description": "Looks in a row that must fail.",
            },
        },
        "allOf": with,
    })
}

fn rollback() -> Value {
    json!({
        "anyOf": [{ "$ref": "#/$defs/host_steps" }, {
            "type": "object", "additionalProperties": false, "required": ["steps"],
            "properties": {
                "steps": { "$ref": "#/$defs/host_steps" },
                "waves": { "type": ["string", "integer"] },
                "parallel": { "type": "integer", "minimum": 0, "maximum": MAX_PARALLEL },
                "budget": { "$ref": "#/$defs/budget" },
                "values": { "type": "object", "description": "They go over all other values.", "propertyNames": { "pattern": "^[A-Za-z_][A-Za-z0-9_]{0,62}$" } },
            },
        }],
    })
}

fn branches() -> Value {
    let branch = json!({
        "type": "object", "additionalProperties": false, "required": ["if", "to"],
        "properties": {
            "name": { "$ref": "#/$defs/name", "description": "How a person picks it; the first target when absent." },
            "if": { "$ref": "#/$defs/expression" },
            "to": { "$ref": "#/$defs/targets" },
        },
    });
    let default = json!({
        "type": "object", "additionalProperties": false, "required": ["default"],
        "properties": { "default": { "anyOf": [
            { "$ref": "#/$defs/targets" },
            { "type": "array", "maxItems": 0, "description": "Goes nowhere." },
        ] } },
    });
    json!({
        "type": "array", "minItems": 2, "maxItems": 50,
        "description": "Branches in order; the last one is `default`.",
        "items": { "anyOf": [branch, default] },
        "contains": { "required": ["default"] }, "maxContains": 1,
    })
}

fn host_step() -> Value {
    let on_host: Vec<&Action> = ACTIONS.iter().filter(|a| a.on_host()).collect();
    let mut all: Vec<Value> = on_host.iter().map(|a| with_of(a)).collect();
    for (name, key) in [(DRAIN, "always"), (ATTACH, "if")] {
        all.push(json!({
            "if": { "properties": { "uses": { "const": name } }, "required": ["uses"] },
            "then": { "properties": { "timeout": false, "required": false, key: false } },
        }));
    }
    json!({
        "type": "object", "required": ["uses"], "additionalProperties": false,
        "properties": {
            "id": { "type": "string", "pattern": "^[A-Za-z0-9][a-z0-9._-]{0,62}$", "description": "The action's name when absent." },
            "if": { "$ref": "#/$defs/expression" },
            "uses": { "enum": on_host.iter().map(|a| a.name).collect::<Vec<_>>() },
            "with": { "type": "object" },
            "timeout": { "$ref": "#/$defs/duration" },
            "always": { "type": "boolean", "default": false, "description": "Runs whatever happened before: clean-up." },
            "required": { "type": "boolean", "default": false, "description": "Nobody can skip it on a host, nor ignore that it failed there." },
        },
        "allOf": all,
    })
}

fn with_of(a: &Action) -> Value {
    let mut then = json!({ "properties": { "with": { "$ref": format!("#/$defs/with.{}", a.name) } } });
    if a.parameters.iter().any(|p| p.required) {
        then["required"] = json!(["with"]);
    }
    json!({ "if": { "properties": { "uses": { "const": a.name } }, "required": ["uses"] }, "then": then })
}

fn with(a: &Action) -> Value {
    let properties: Map<String, Value> = a.parameters.iter().map(|p| (p.name.to_string(), parameter(p))).collect();
    let required: Vec<&str> = a.parameters.iter().filter(|p| p.required).map(|p| p.name).collect();
    let mut schema = json!({
        "type": "object", "description": a.doc, "additionalProperties": false,
        "properties": properties, "required": required,
    });
    if a.name == "service.restart" {
        schema["oneOf"] = json!([{ "required": ["unit"] }, { "required": ["command"] }]);
    }
    schema
}

fn parameter(p: &Parameter) -> Value {
    let word = json!({ "$ref": "#/$defs/word" });
    let kind = match p.kind {
        Kind::Text | Kind::Script => word,
        Kind::Integer { min, max } => json!({ "type": "integer", "minimum": min, "maximum": max }),
        Kind::Duration => json!({ "$ref": "#/$defs/duration" }),
        Kind::OneOf(words) => json!({ "enum": words }),
        Kind::TextList => json!({ "type": "array", "items": word }),
        Kind::TextMap => json!({ "type": "object", "additionalProperties": word }),
        Kind::Statuses => {
            let one = json!([
                { "type": "integer", "minimum": 100, "maximum": 599 },
                { "type": "string", "pattern": "^ *[1-5][0-9]{2} *(- *[1-5][0-9]{2} *)?$" },
            ]);
            let mut kinds = one.as_array().cloned().unwrap_or_default();
            kinds.push(json!({ "type": "array", "minItems": 1, "maxItems": 20, "items": { "anyOf": one } }));
            json!({ "anyOf": kinds })
        }
        Kind::Url => json!({ "type": "string", "pattern": "^https?://" }),
        Kind::Mode => json!({ "anyOf": [{ "type": "string", "pattern": "^[0-7]{3,4}$" }, { "type": "integer" }] }),
        Kind::Path => json!({ "type": "string", "minLength": 1 }),
    };
    let mut schema = match p.kind {
        Kind::Text | Kind::Script => kind,
        _ => json!({ "anyOf": [kind, { "$ref": "#/$defs/template" }] }),
    };
    schema["description"] = json!(p.doc);
    if let Some(d) = p.default_value() {
        // Seconds in the resolved form are written with their unit.
        schema["default"] = if p.kind == Kind::Duration { json!(format!("{d}s")) } else { d };
    }
    schema
}
