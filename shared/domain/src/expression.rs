//! Expressions: CEL in `if:` and inside `${{ }}`. They read a [`Context`] and nothing else; no function has an effect,
//! knows the time or is random.
//!
//! What an expression costs is bounded before it runs: its text is at most 1 KiB; it nests at most 16 brackets and 20
//! operations; `+` stands in it 16 times at most, so text grows at most 17-fold. A loop (`all`, `exists`, `exists_one`,
//! `filter`) may not hold another, `map` is not offered (it would make lists of made-up texts), there are at most 4 loops,
//! and with a loop or `matches` the values that are read are limited to 1,000 with 32 KiB of text. `matches` takes a
//! literal pattern without `{}` repetition, outside loops.

mod limits;
mod order;
mod template;
pub(crate) mod types;

pub(crate) use template::escape;
pub use template::{Template, render, render_value, template_reads};

use cel::{Env, IdedExpr, common::ast::Expr, parser::PrattParser};
use serde_json::{Map, Value};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, LazyLock},
};

/// Largest expression, in bytes.
pub const MAX_SOURCE: usize = 1024;
/// Largest result, in bytes of its JSON text.
pub const MAX_RESULT: usize = 64 * 1024;

static ENV: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::stdlib()));

/// What is wrong with an expression. The expression is named in each, the remedy where there is one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExpressionError {
    #[error("the expression `{0}...` is longer than {MAX_SOURCE} bytes: compute the value elsewhere and pass it in")]
    TooLong(String),
    #[error("the expression is empty; write one such as `inputs.restart`")]
    Empty,
    #[error("in `{expression}`, character {character}: {message}")]
    Syntax { expression: String, character: usize, message: String },
    #[error("`{expression}` is refused: {reason}")]
    Refused { expression: String, reason: String },
    #[error("`{expression}` cannot be computed: {reason}")]
    Failed { expression: String, reason: String },
    #[error("`{expression}` must be true or false, but is {got}; compare it with something")]
    NotBoolean { expression: String, got: String },
    #[error("`{expression}` is {got}, which cannot be written into text; pick a part of it")]
    NotText { expression: String, got: String },
    #[error("`${{{{` at character {character} has no closing `}}}}`; write `$${{{{` if the text itself is meant")]
    Unclosed { character: usize },
}

/// The values expressions read, under their root names: `inputs`, `artifact`, `release`, `env`, `host`.
#[derive(Debug, Clone, Default)]
pub struct Context {
    roots: BTreeMap<String, Arc<Root>>,
    /// Where references are read: what stands before the names of steps, and the names it does not stand before.
    scope: String,
    own: Arc<BTreeSet<String>>,
}

#[derive(Debug)]
struct Root {
    value: cel::Value,
    size: limits::Size,
}

impl Context {
    /// The context with one more root.
    pub fn with(mut self, root: &str, value: Value) -> Self {
        let size = limits::Size::of(&value);
        self.roots.insert(root.into(), Arc::new(Root { value: to_cel(value), size }));
        self
    }

    /// The context within a subflow: a reference to the step `build` means `<scope>/build` of the plan.
    pub fn in_scope(mut self, scope: &str) -> Self {
        scope.clone_into(&mut self.scope);
        self
    }

    /// The context of a rollout's host steps: references to these steps mean the host's own, in any scope.
    pub fn with_own_steps(mut self, steps: impl IntoIterator<Item = String>) -> Self {
        self.own = Arc::new(steps.into_iter().collect());
        self
    }

    /// Whether the values that references mean are here; otherwise references render to their markers.
    fn knows(&self, r: &crate::reference::Reference) -> bool {
        matches!(r, crate::reference::Reference::Output { .. }) && self.roots.contains_key("steps")
    }

    fn marker(&self, r: &crate::reference::Reference) -> String {
        use crate::reference::Reference;
        match r {
            Reference::Output { step, path } if !self.scope.is_empty() && !self.own.contains(step) => {
                Reference::Output { step: format!("{}/{step}", self.scope), path: path.clone() }.marker()
            }
            r => r.marker(),
        }
    }
}

/// A checked expression, ready to run many times.
pub struct Expression {
    source: String,
    tree: IdedExpr,
    /// `tree` with maps put in order where that is seen.
    ordered: IdedExpr,
    roots: BTreeSet<String>,
    /// `inputs.restart` and `inputs["restart"]` as `("inputs", "restart")`.
    fields: BTreeSet<(String, String)>,
    paths: BTreeSet<Vec<String>>,
    heavy: bool,
}

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Expression({:?})", self.source)
    }
}

impl Expression {
    /// Parses and checks the limits.
    pub fn compile(source: &str) -> Result<Expression, ExpressionError> {
        let source = source.trim();
        limits::check_source(source)?;
        let parser = PrattParser::new().max_recursion_depth(48).max_expression_node_count(1024);
        let tree = parser.parse(source).map_err(|e| {
            let first = e.errors.first();
            let message = first.map_or("not a CEL expression", |e| e.msg.lines().next().unwrap_or_default());
            let character = first.map_or(1, |e| usize::try_from(e.pos.1).unwrap_or(1)).max(1);
            let message = limits::shorten(message.trim_start_matches("Syntax error: "), 160);
            ExpressionError::Syntax { expression: source.into(), character, message }
        })?;
        let facts = limits::check(source, &tree.expr)?;
        Ok(Expression {
            source: source.into(),
            ordered: order::fixed(tree.clone()),
            tree,
            roots: facts.roots,
            fields: facts.fields,
            paths: facts.paths,
            heavy: facts.loops > 0 || facts.matches > 0,
        })
    }

    pub fn source(&self) -> &str {
        &self.source
    }

    /// Names it reads that it does not define itself.
    pub fn roots(&self) -> &BTreeSet<String> {
        &self.roots
    }

    /// Which fields of which roots it names literally.
    pub fn fields(&self) -> &BTreeSet<(String, String)> {
        &self.fields
    }

    /// Every place it reads, as the names from the root down to where they end or are computed: `steps.a.outputs["b"][i]`
    /// as `steps, a, outputs, b`.
    pub fn paths(&self) -> &BTreeSet<Vec<String>> {
        &self.paths
    }

    /// The names, if the whole expression is one such place and nothing is computed.
    pub fn whole_path(&self) -> Option<&[String]> {
        let mut at = &self.tree.expr;
        while let Some((of, _)) = limits::member(at) {
            if matches!(at, Expr::Select(s) if s.test) {
                return None;
            }
            at = of;
        }
        matches!(at, Expr::Ident(_)).then(|| self.paths.first().map(Vec::as_slice)).flatten()
    }

    pub fn reads(&self, root: &str) -> bool {
        self.roots.contains(root)
    }

    /// Its value.
    pub fn eval(&self, context: &Context) -> Result<Value, ExpressionError> {
        let failed = |reason: String| ExpressionError::Failed { expression: self.source.clone(), reason };
        let mut size = limits::Size::default();
        let mut scope = cel::Context::with_env(Arc::clone(&ENV));
        for name in &self.roots {
            let Some(root) = context.roots.get(name) else {
                let known = context.roots.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
                return Err(failed(format!("there is no `{name}` here; there are: {known}")));
            };
            size.add(&root.size);
            scope.add_variable_from_value(name.as_str(), root.value.clone());
        }
        size.check(self.heavy).map_err(failed)?;
        order::offer(&mut scope).map_err(failed)?;
        let value = scope.resolve(&self.ordered).map_err(|e| failed(limits::shorten(&e.to_string(), 300)))?;
        let mut room = MAX_RESULT;
        from_cel(&value, &mut room, 0).map_err(failed)
    }

    /// What is surely wrong with it where its names have these types, and the type it has.
    pub(crate) fn check_types(&self, names: &types::Names) -> (types::Type, Vec<String>) {
        types::check(&self.tree.expr, names)
    }

    /// Its value, which must be true or false.
    pub fn eval_bool(&self, context: &Context) -> Result<bool, ExpressionError> {
        match self.eval(context)? {
            Value::Bool(b) => Ok(b),
            other => Err(ExpressionError::NotBoolean { expression: self.source.clone(), got: kind(&other) }),
        }
    }
}

/// Checks an expression and says which roots it reads.
pub fn check(source: &str) -> Result<BTreeSet<String>, ExpressionError> {
    Expression::compile(source).map(|e| e.roots)
}

/// The value of an expression.
pub fn eval(source: &str, context: &Context) -> Result<Value, ExpressionError> {
    Expression::compile(source)?.eval(context)
}

/// The value of a condition.
pub fn eval_bool(source: &str, context: &Context) -> Result<bool, ExpressionError> {
    Expression::compile(source)?.eval_bool(context)
}

/// Whether an expression reads `root`; false for one that does not parse.
pub fn references(source: &str, root: &str) -> bool {
    Expression::compile(source).is_ok_and(|e| e.reads(root))
}

fn kind(value: &Value) -> String {
    crate::flow::actions::brief(value)
}

fn to_cel(value: Value) -> cel::Value {
    match value {
        Value::Null => cel::Value::Null,
        Value::Bool(b) => cel::Value::Bool(b),
        Value::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(i), _) => cel::Value::Int(i),
            (None, Some(u)) => cel::Value::UInt(u),
            (None, None) => cel::Value::Float(n.as_f64().unwrap_or_default()),
        },
        Value::String(s) => cel::Value::String(Arc::new(s)),
        Value::Array(l) => cel::Value::List(Arc::new(l.into_iter().map(to_cel).collect())),
        Value::Object(m) => object(m),
    }
}

fn object(m: Map<String, Value>) -> cel::Value {
    let map: std::collections::HashMap<String, cel::Value> = m.into_iter().map(|(k, v)| (k, to_cel(v))).collect();
    map.into()
}

/// To JSON, as far as `room` (bytes) allows.
fn from_cel(value: &cel::Value, room: &mut usize, depth: usize) -> Result<Value, String> {
    let mut spend = |n: usize| -> Result<(), String> {
        *room = room.checked_sub(n).ok_or_else(|| format!("the result is larger than {MAX_RESULT} bytes"))?;
        Ok(())
    };
    spend(8)?;
    if depth > 64 {
        return Err("the result is nested deeper than 64 levels".into());
    }
    Ok(match value {
        cel::Value::Null => Value::Null,
        cel::Value::Bool(b) => Value::Bool(*b),
        cel::Value::Int(i) => Value::from(*i),
        cel::Value::UInt(u) => Value::from(*u),
        cel::Value::Float(f) => match serde_json::Number::from_f64(*f) {
            Some(n) => Value::Number(n),
            None => return Err("the result is not a finite number".into()),
        },
        cel::Value::String(s) => {
            spend(s.len())?;
            Value::String(s.to_string())
        }
        cel::Value::Timestamp(t) => Value::String(t.to_rfc3339()),
        cel::Value::Duration(d) => Value::String(format!("{}s", d.num_seconds())),
        cel::Value::List(l) => Value::Array(l.iter().map(|v| from_cel(v, room, depth + 1)).collect::<Result<_, _>>()?),
        cel::Value::Map(m) => {
            let mut out = Map::new();
            for (k, v) in m.map.iter() {
                let key = k.to_string();
                *room = room.saturating_sub(key.len());
                out.insert(key, from_cel(v, room, depth + 1)?);
            }
            Value::Object(out)
        }
        _ => return Err("the result is neither text, number, boolean, list nor map".into()),
    })
}

#[cfg(test)]
mod tests;
