//! The order in which maps are gone through. The evaluator keeps maps in hash tables, whose order is another one in each process:
//! `host.labels.filter(k, true)` would differ between the plan that was approved and the plan that is run. So wherever an
//! expression makes a list of a map (a loop over it, `list + map`), the map is first made a list of its keys, in order.

use cel::{
    IdedExpr, Value,
    common::ast::{CallExpr, EntryExpr, Expr},
};
use std::sync::Arc;

/// No text can call it: names do not begin with `@`.
const ORDERED: &str = "@ordered";

/// The tree to evaluate: as it was read, with maps put in order where that is seen. Trees are at most 20 deep (`limits`).
pub(super) fn fixed(mut tree: IdedExpr) -> IdedExpr {
    walk(&mut tree.expr);
    tree
}

/// Gives an evaluation what [`fixed`] trees call.
pub(super) fn offer(scope: &mut cel::Context<'_, '_>) -> Result<(), String> {
    scope.add_function(ORDERED, ordered).map_err(|e| e.to_string())
}

/// The keys of a map, in order; any other value as it is.
fn ordered(value: Value) -> Value {
    let Value::Map(m) = value else { return value };
    let mut keys: Vec<_> = m.map.keys().cloned().collect();
    keys.sort();
    Value::List(Arc::new(keys.into_iter().map(Value::from).collect()))
}

fn walk(e: &mut Expr) {
    match e {
        Expr::Call(c) => {
            c.target.iter_mut().for_each(|t| walk(&mut t.expr));
            c.args.iter_mut().for_each(|a| walk(&mut a.expr));
            if let ("_+_", [_, right]) = (c.func_name.as_str(), c.args.as_mut_slice()) {
                wrap(right);
            }
        }
        Expr::Comprehension(c) => {
            for part in [&mut c.iter_range, &mut c.accu_init, &mut c.loop_cond, &mut c.loop_step, &mut c.result] {
                walk(&mut part.expr);
            }
            if c.iter_var2.is_none() {
                wrap(&mut c.iter_range);
            }
        }
        Expr::List(l) => l.elements.iter_mut().for_each(|e| walk(&mut e.expr)),
        Expr::Map(m) => m.entries.iter_mut().for_each(|e| {
            if let EntryExpr::MapEntry(e) = &mut e.expr {
                walk(&mut e.key.expr);
                walk(&mut e.value.expr);
            }
        }),
        Expr::Select(s) => walk(&mut s.operand.expr),
        Expr::Struct(_) | Expr::Ident(_) | Expr::Literal(_) | Expr::Unspecified => {}
    }
}

/// What is surely no map stays bare: the evaluator is quicker where it sees `list + [x]`, and sums in sums get no deeper.
fn wrap(e: &mut IdedExpr) {
    let bare = match &e.expr {
        Expr::Literal(_) | Expr::List(_) | Expr::Comprehension(_) => true,
        Expr::Call(c) => c.func_name == "_+_",
        _ => false,
    };
    if bare {
        return;
    }
    let inner = std::mem::take(e);
    e.id = inner.id;
    e.expr = Expr::Call(CallExpr { func_name: ORDERED.into(), target: None, args: vec![inner] });
}

#[cfg(test)]
mod tests {
    use crate::expression::{Context, eval};
    use serde_json::json;

    #[test]
    fn what_is_made_of_a_map_is_in_the_order_of_its_keys() {
        let names: Vec<String> = (0..40).map(|i| format!("k{i:02}")).collect();
        let map: serde_json::Map<String, serde_json::Value> = names.iter().map(|n| (n.clone(), json!(n))).collect();
        let context = Context::default().with("env", json!({ "map": map, "list": ["a"], "text": "b" }));
        let of = |source: &str| eval(source, &context).unwrap_or_else(|e| panic!("{source}: {e}"));
        assert_eq!(of("env.map.filter(k, true)"), json!(names));
        assert_eq!(of("(true ? env.map : env.map).filter(k, k != 'k00')"), json!(names[1..]));
        assert_eq!(of("env.list + env.map"), json!([vec!["a".to_owned()], names].concat()));
        // All else is as it was.
        assert_eq!(of("env.list.filter(x, x == 'a') + env.list"), json!(["a", "a"]));
        assert_eq!(of("env.text + env.text + 'c'"), json!("bbc"));
        assert_eq!(of("env.map.exists(k, k == 'k07') && env.map.all(k, k.startsWith('k'))"), json!(true));
        assert_eq!(of("1 + env.list.size()"), json!(2));
        assert!(eval("@ordered(env.map)", &context).is_err());
    }
}
