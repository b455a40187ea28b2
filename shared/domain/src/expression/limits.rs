//! What an expression may cost, decided from its text and tree before it runs.

use super::{ExpressionError, MAX_SOURCE};
use cel::common::ast::{ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue};
use serde_json::Value;
use std::collections::BTreeSet;

const MAX_BRACKETS: usize = 16;
const MAX_CHOICES: usize = 16;
/// Unoptimised, the evaluator takes some 35 KiB of stack a level; a worker thread has 2 MiB and other uses for it.
const MAX_DEPTH: usize = 20;
const MAX_PLUS: usize = 16;
const MAX_PLUS_IN_LOOP: usize = 2;
const MAX_LOOPS: usize = 4;
const MAX_MATCHES: usize = 4;

/// How much there is to read.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Size {
    values: usize,
    bytes: usize,
}

impl Size {
    pub(super) fn of(value: &Value) -> Size {
        let mut s = Size::default();
        s.count(value);
        s
    }

    fn count(&mut self, value: &Value) {
        self.values += 1;
        match value {
            Value::String(t) => self.bytes += t.len(),
            Value::Array(l) => l.iter().for_each(|v| self.count(v)),
            Value::Object(m) => m.iter().for_each(|(k, v)| {
                self.bytes += k.len();
                self.count(v);
            }),
            _ => {}
        }
    }

    pub(super) fn add(&mut self, other: &Size) {
        self.values += other.values;
        self.bytes += other.bytes;
    }

    pub(super) fn check(&self, heavy: bool) -> Result<(), String> {
        let (values, bytes, why) = if heavy {
            (1_000, 32 * 1024, " of an expression with a loop or `matches`")
        } else {
            (200_000, 4 << 20, "")
        };
        if self.values > values || self.bytes > bytes {
            return Err(format!(
                "it reads {} values with {} bytes of text; the limit{why} is {values} with {bytes}",
                self.values, self.bytes
            ));
        }
        Ok(())
    }
}

/// What the checks found out on the way.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub roots: BTreeSet<String>,
    pub fields: BTreeSet<(String, String)>,
    pub paths: BTreeSet<Vec<String>>,
    pub loops: usize,
    pub matches: usize,
    plus: usize,
}

/// Before the parser sees it: what could make the parser itself recurse.
pub(super) fn check_source(source: &str) -> Result<(), ExpressionError> {
    if source.is_empty() {
        return Err(ExpressionError::Empty);
    }
    if source.len() > MAX_SOURCE {
        return Err(ExpressionError::TooLong(source.chars().take(40).collect()));
    }
    let refused = |reason: &str| ExpressionError::Refused { expression: source.into(), reason: reason.into() };
    let (mut depth, mut deepest, mut choices) = (0usize, 0, 0);
    for c in source.chars() {
        match c {
            '(' | '[' | '{' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            '?' => choices += 1,
            '\0' => return Err(refused("it holds a NUL character")),
            _ => {}
        }
    }
    if deepest > MAX_BRACKETS {
        return Err(refused("brackets nest deeper than 16"));
    }
    if choices > MAX_CHOICES {
        return Err(refused("it holds `?` more than 16 times"));
    }
    Ok(())
}

/// After the parser.
pub(super) fn check(source: &str, expr: &Expr) -> Result<Facts, ExpressionError> {
    let mut w = Walk { facts: Facts::default(), scope: Vec::new(), in_loop: false, plus_in_loop: 0 };
    w.expr(expr, 0)
        .map(|()| w.facts)
        .map_err(|reason| ExpressionError::Refused { expression: source.into(), reason: reason.into() })
}

const TOO_DEEP: &str = "operations nest or chain deeper than 20; use brackets or a shorter expression";

/// `of.name` and `of["name"]`, apart.
pub(super) fn member(e: &Expr) -> Option<(&Expr, &str)> {
    match e {
        Expr::Select(s) => Some((&s.operand.expr, &s.field)),
        Expr::Call(c) if c.func_name == "_[_]" && c.target.is_none() => match c.args.as_slice() {
            [of, key] => match &key.expr {
                Expr::Literal(LiteralValue::String(s)) => Some((&of.expr, s.inner())),
                _ => None,
            },
            _ => None,
        },
        _ => None,
    }
}

struct Walk {
    facts: Facts,
    scope: Vec<String>,
    in_loop: bool,
    plus_in_loop: usize,
}

impl Walk {
    fn free<'e>(&self, e: &'e Expr) -> Option<&'e str> {
        match e {
            Expr::Ident(n) if !n.starts_with('@') && !self.scope.contains(n) => Some(n.trim_start_matches('.')),
            _ => None,
        }
    }

    /// `a.b["c"]` as its names, from a root that is free here.
    fn path(&self, e: &Expr) -> Option<Vec<String>> {
        let mut names = Vec::new();
        let mut at = e;
        loop {
            let Some((of, name)) = member(at) else {
                names.push(self.free(at)?.into());
                names.reverse();
                return Some(names);
            };
            names.push(name.into());
            at = of;
        }
    }

    fn all<'e>(&mut self, l: impl IntoIterator<Item = &'e IdedExpr>, depth: usize) -> Result<(), &'static str> {
        l.into_iter().try_for_each(|e| self.expr(&e.expr, depth))
    }

    fn expr(&mut self, e: &Expr, depth: usize) -> Result<(), &'static str> {
        if depth > MAX_DEPTH {
            return Err(TOO_DEEP);
        }
        if let Some(path) = self.path(e) {
            // A chain of names costs what the same chain of operations does.
            if depth + path.len() > MAX_DEPTH + 1 {
                return Err(TOO_DEEP);
            }
            self.facts.roots.insert(path[0].clone());
            if let Some(field) = path.get(1) {
                self.facts.fields.insert((path[0].clone(), field.clone()));
            }
            self.facts.paths.insert(path);
            return Ok(());
        }
        let depth = depth + 1;
        match e {
            Expr::Unspecified | Expr::Literal(_) => Ok(()),
            Expr::Ident(_) => Ok(()),
            Expr::Select(s) => self.expr(&s.operand.expr, depth),
            Expr::Call(c) => {
                match c.func_name.as_str() {
                    "_+_" => {
                        self.facts.plus += 1;
                        self.plus_in_loop += usize::from(self.in_loop);
                        if self.facts.plus > MAX_PLUS || self.plus_in_loop > MAX_PLUS_IN_LOOP {
                            return Err("it holds `+` more than 16 times, or more than twice in loops");
                        }
                    }
                    "map" => return Err("`map` is not offered; use `all`, `exists`, `exists_one` or `filter`"),
                    "matches" => self.matches(c.args.last().map(|a| &a.expr))?,
                    _ => {}
                }
                self.all(c.target.as_deref(), depth)?;
                self.all(&c.args, depth)
            }
            Expr::List(l) => self.all(&l.elements, depth),
            Expr::Map(m) => self.entries(m.entries.iter().map(|e| &e.expr), depth),
            Expr::Struct(s) => self.entries(s.entries.iter().map(|e| &e.expr), depth),
            Expr::Comprehension(c) => self.comprehension(c, depth),
        }
    }

    fn entries<'e>(&mut self, l: impl Iterator<Item = &'e EntryExpr>, depth: usize) -> Result<(), &'static str> {
        for e in l {
            match e {
                EntryExpr::StructField(f) => self.expr(&f.value.expr, depth)?,
                EntryExpr::MapEntry(m) => {
                    self.expr(&m.key.expr, depth)?;
                    self.expr(&m.value.expr, depth)?;
                }
            }
        }
        Ok(())
    }

    fn matches(&mut self, pattern: Option<&Expr>) -> Result<(), &'static str> {
        self.facts.matches += 1;
        if self.in_loop || self.facts.matches > MAX_MATCHES {
            return Err("`matches` may stand 4 times, and not in a loop");
        }
        match pattern {
            Some(Expr::Literal(LiteralValue::String(s))) if !s.inner().contains('{') => Ok(()),
            _ => Err("the pattern of `matches` must be a literal without `{`"),
        }
    }

    fn comprehension(&mut self, c: &ComprehensionExpr, depth: usize) -> Result<(), &'static str> {
        self.facts.loops += 1;
        if self.in_loop || self.facts.loops > MAX_LOOPS {
            return Err("a loop may not hold a loop, and there may be 4 at most");
        }
        // `map` appends what its body makes; `filter` appends the element itself.
        if appended(&c.loop_step.expr, &c.accu_var).is_some_and(|e| !matches!(e, Expr::Ident(n) if *n == c.iter_var)) {
            return Err("`map` is not offered; use `all`, `exists`, `exists_one` or `filter`");
        }
        let before = self.facts.plus;
        self.expr(&c.iter_range.expr, depth)?;
        if self.facts.plus > before {
            return Err("a loop may not go over a list made with `+`");
        }
        let depth_of_scope = self.scope.len();
        self.scope.extend([c.iter_var.clone(), c.accu_var.clone()]);
        self.scope.extend(c.iter_var2.clone());
        self.in_loop = true;
        let (plus, plus_in_loop) = (self.facts.plus, self.plus_in_loop);
        let done = self.all([&c.accu_init, &c.loop_cond, &c.result], depth);
        let done = done.and_then(|()| match appended(&c.loop_step.expr, &c.accu_var) {
            // What the macro itself adds does not count.
            Some(_) => {
                (self.facts.plus, self.plus_in_loop) = (plus, plus_in_loop);
                self.step_of_filter(&c.loop_step.expr, depth)
            }
            None => {
                (self.facts.plus, self.plus_in_loop) = (plus, plus_in_loop);
                self.step_of_count(&c.loop_step.expr, depth)
            }
        });
        self.in_loop = false;
        self.scope.truncate(depth_of_scope);
        done
    }

    /// `condition ? accu + [x] : accu`: only the condition is the author's.
    fn step_of_filter(&mut self, e: &Expr, depth: usize) -> Result<(), &'static str> {
        match e {
            Expr::Call(c) if c.func_name == "_?_:_" => self.all(c.args.first(), depth),
            _ => self.expr(e, depth),
        }
    }

    /// `exists_one` counts with `condition ? accu + 1 : accu`; the others have no `+` of their own.
    fn step_of_count(&mut self, e: &Expr, depth: usize) -> Result<(), &'static str> {
        match e {
            Expr::Call(c) if c.func_name == "_?_:_" && c.args.len() == 3 => match &c.args[2].expr {
                Expr::Ident(n) if n.starts_with('@') => self.all(c.args.first(), depth),
                _ => self.expr(e, depth),
            },
            _ => self.expr(e, depth),
        }
    }
}

/// What a loop step appends to its list, if it does: `accu + [x]`, possibly under a condition.
fn appended<'e>(step: &'e Expr, accu: &str) -> Option<&'e Expr> {
    let Expr::Call(c) = step else { return None };
    match (c.func_name.as_str(), c.args.as_slice()) {
        ("_?_:_", [_, then, _]) => appended(&then.expr, accu),
        ("_+_", [left, right]) => match (&left.expr, &right.expr) {
            (Expr::Ident(n), Expr::List(l)) if n == accu => l.elements.first().map(|e| &e.expr),
            _ => None,
        },
        _ => None,
    }
}

pub(super) fn shorten(s: &str, most: usize) -> String {
    let s: String = s.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if s.chars().count() <= most { s } else { format!("{}...", s.chars().take(most).collect::<String>()) }
}
