//! A static check of expressions: what must fail, or can never be true, whatever the values are.
//!
//! It is sound, not complete: a part that is told fails each time it is computed (or is a comparison with one possible
//! answer). What a name holds is told only where it is surely known; everything else is [`Type::Any`] and never told.

use cel::common::ast::{ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue};
use std::{collections::BTreeMap, sync::Arc};

/// What is known about a value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Type {
    Any,
    Null,
    Boolean,
    Number,
    Text,
    List,
    /// A map; of the fields that are listed the type is known.
    Map(Arc<Fields>),
}

/// Fields of a map.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Fields {
    pub known: BTreeMap<String, Type>,
    /// There are no others.
    pub closed: bool,
}

impl Type {
    /// A map with exactly these fields.
    pub(crate) fn closed<'a>(fields: impl IntoIterator<Item = (&'a str, Type)>) -> Type {
        let known = fields.into_iter().map(|(k, t)| (k.to_string(), t)).collect();
        Type::Map(Arc::new(Fields { known, closed: true }))
    }

    /// A map with at least these fields, if they are there at all.
    pub(crate) fn open<'a>(fields: impl IntoIterator<Item = (&'a str, Type)>) -> Type {
        let known = fields.into_iter().map(|(k, t)| (k.to_string(), t)).collect();
        Type::Map(Arc::new(Fields { known, closed: false }))
    }

    /// For messages.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Type::Any => "any value",
            Type::Null => "null",
            Type::Boolean => "true or false",
            Type::Number => "a number",
            Type::Text => "text",
            Type::List => "a list",
            Type::Map(_) => "a map",
        }
    }

    fn is(&self, other: &Type) -> bool {
        matches!(
            (self, other),
            (Type::Null, Type::Null)
                | (Type::Boolean, Type::Boolean)
                | (Type::Number, Type::Number)
                | (Type::Text, Type::Text)
                | (Type::List, Type::List)
                | (Type::Map(_), Type::Map(_))
        )
    }

    fn may_be(&self, other: &Type) -> bool {
        *self == Type::Any || *other == Type::Any || self.is(other)
    }
}

/// The types of the roots; one that is not listed may be anything.
pub(crate) type Names = BTreeMap<&'static str, Type>;

/// The type of the whole, and each part that is surely wrong.
pub(super) fn check(expr: &Expr, names: &Names) -> (Type, Vec<String>) {
    let mut c = Checker { names, scope: Vec::new(), found: Vec::new() };
    let t = c.expr(expr);
    (t, c.found)
}

struct Checker<'n> {
    names: &'n Names,
    /// Variables of loops.
    scope: Vec<String>,
    found: Vec<String>,
}

impl Checker<'_> {
    fn tell(&mut self, text: String) -> Type {
        if !self.found.contains(&text) {
            self.found.push(text);
        }
        Type::Any
    }

    /// Trees are at most 20 deep (`limits`).
    fn expr(&mut self, e: &Expr) -> Type {
        match e {
            Expr::Unspecified | Expr::Struct(_) => Type::Any,
            Expr::Literal(l) => literal(l),
            Expr::Ident(n) if self.scope.contains(n) => Type::Any,
            Expr::Ident(n) => self.names.get(n.trim_start_matches('.')).cloned().unwrap_or(Type::Any),
            Expr::Select(s) => {
                let of = self.expr(&s.operand.expr);
                let t = self.member(&of, &s.field, &s.operand.expr, s.test);
                if s.test { Type::Boolean } else { t }
            }
            Expr::Call(c) => match (&c.target, c.args.as_slice()) {
                (Some(of), args) => self.method(&of.expr, &c.func_name, args),
                (None, [a]) => self.unary(&c.func_name, &a.expr),
                (None, [a, b]) => self.binary(&c.func_name, &a.expr, &b.expr),
                (None, [a, b, c2]) if c.func_name == "_?_:_" => {
                    let when = self.expr(&a.expr);
                    self.boolean(&when, &a.expr, "the condition of `?`");
                    let (yes, no) = (self.expr(&b.expr), self.expr(&c2.expr));
                    match (yes == no, yes.is(&no)) {
                        (true, _) => yes,
                        (false, true) => Type::open([]),
                        _ => Type::Any,
                    }
                }
                (None, args) => {
                    args.iter().for_each(|a| drop(self.expr(&a.expr)));
                    Type::Any
                }
            },
            Expr::List(l) => {
                l.elements.iter().for_each(|e| drop(self.expr(&e.expr)));
                Type::List
            }
            Expr::Map(m) => {
                for e in &m.entries {
                    if let EntryExpr::MapEntry(e) = &e.expr {
                        self.expr(&e.key.expr);
                        self.expr(&e.value.expr);
                    }
                }
                Type::open([])
            }
            Expr::Comprehension(c) => self.comprehension(c),
        }
    }

    fn member(&mut self, of: &Type, field: &str, written: &Expr, test: bool) -> Type {
        match of {
            Type::Map(f) => match f.known.get(field) {
                Some(t) => t.clone(),
                None if f.closed && !test => {
                    let known: Vec<&str> = f.known.keys().map(String::as_str).collect();
                    let near = crate::span::suggestion(field, known.iter().copied());
                    let (of, known) = (show(written), known.join(", "));
                    self.tell(format!("`{of}` has no `{}`{near}; known: {known}", shorten(field)))
                }
                None => Type::Any,
            },
            Type::Any => Type::Any,
            other => {
                let text = format!("`{}` is {}, which has no `{}`", show(written), other.name(), shorten(field));
                self.tell(text)
            }
        }
    }

    fn boolean(&mut self, t: &Type, written: &Expr, place: &str) {
        if !t.may_be(&Type::Boolean) {
            let text = format!(
                "{place} must be true or false, but `{}` is {}; compare it with something",
                show(written),
                t.name()
            );
            self.tell(text);
        }
    }

    fn unary(&mut self, name: &str, a: &Expr) -> Type {
        let t = self.expr(a);
        match name {
            "!_" => {
                self.boolean(&t, a, "what follows `!`");
                Type::Boolean
            }
            "-_" => {
                if !t.may_be(&Type::Number) {
                    return self.tell(format!("`-` needs a number, but `{}` is {}", show(a), t.name()));
                }
                t
            }
            "size" => {
                if !(t.may_be(&Type::Text) || t.is(&Type::List) || matches!(t, Type::Map(_))) {
                    return self.tell(format!("`size` needs text, a list or a map, but `{}` is {}", show(a), t.name()));
                }
                Type::Number
            }
            "string" => Type::Text,
            "int" | "double" | "uint" => Type::Number,
            _ => Type::Any,
        }
    }

    fn binary(&mut self, name: &str, a: &Expr, b: &Expr) -> Type {
        let (left, right) = (self.expr(a), self.expr(b));
        let told = |sign: &str, rest: &str| {
            format!(
                "`{} {sign} {}` has {} on the left and {} on the right{rest}",
                show(a),
                show(b),
                left.name(),
                right.name()
            )
        };
        let sign = name.trim_matches('_');
        match name {
            "_&&_" | "_||_" => {
                let place = format!("each side of `{sign}`");
                self.boolean(&left, a, &place);
                self.boolean(&right, b, &place);
                Type::Boolean
            }
            "_==_" | "_!=_" => {
                // `x == null` asks whether an optional value was given.
                if !left.may_be(&right) && left != Type::Null && right != Type::Null {
                    let always = if name == "_==_" { "false" } else { "true" };
                    let text = told(sign, &format!(", which is always {always}; compare values of one type"));
                    self.tell(text);
                }
                Type::Boolean
            }
            "_<_" | "_<=_" | "_>_" | "_>=_" => {
                let ordered = [Type::Number, Type::Text, Type::Boolean];
                if !left.may_be(&right) || !ordered.iter().any(|t| left.may_be(t) && right.may_be(t)) {
                    let text = told(sign, ", which have no order; compare two numbers or two texts");
                    self.tell(text);
                }
                Type::Boolean
            }
            "_+_" | "_-_" | "_*_" | "_/_" | "_%_" => self.arithmetic(sign, &left, &right, &told),
            "@in" => {
                if !(right.may_be(&Type::List) || matches!(right, Type::Map(_))) {
                    let text =
                        format!("`in` needs a list or a map on its right, but `{}` is {}", show(b), right.name());
                    self.tell(text);
                }
                Type::Boolean
            }
            "_[_]" => match super::limits::member(&Expr::Call(index(a, b))) {
                Some((_, field)) => self.member(&left, field, a, false),
                None => {
                    if !(left.may_be(&Type::List) || matches!(left, Type::Map(_))) {
                        return self.tell(format!("`{}` is {}, which has no parts", show(a), left.name()));
                    }
                    Type::Any
                }
            },
            _ => Type::Any,
        }
    }

    fn arithmetic(&mut self, sign: &str, left: &Type, right: &Type, told: &dyn Fn(&str, &str) -> String) -> Type {
        let kinds: &[Type] = if sign == "+" { &[Type::Number, Type::Text, Type::List] } else { &[Type::Number] };
        match kinds.iter().find(|t| left.is(t) || right.is(t)) {
            Some(t) if left.may_be(t) && right.may_be(t) => t.clone(),
            None if *left == Type::Any && *right == Type::Any => Type::Any,
            // The evaluator appends a map's keys to a list.
            _ if sign == "+" && left.may_be(&Type::List) && matches!(right, Type::Map(_)) => Type::Any,
            _ => {
                let rest = if sign == "+" {
                    "; add two numbers, two texts (`string(...)` makes text) or two lists"
                } else {
                    "; compute with numbers"
                };
                self.tell(told(sign, rest))
            }
        }
    }

    fn method(&mut self, of: &Expr, name: &str, args: &[IdedExpr]) -> Type {
        let target = self.expr(of);
        let given: Vec<Type> = args.iter().map(|a| self.expr(&a.expr)).collect();
        let (takes, gives): (&[Type], Type) = match name {
            "startsWith" | "endsWith" | "contains" | "matches" => (&[Type::Text], Type::Boolean),
            "size" => {
                if !(target.may_be(&Type::Text) || target.is(&Type::List) || matches!(target, Type::Map(_))) {
                    return self.tell(format!("`{}` is {}, which has no `size()`", show(of), target.name()));
                }
                return Type::Number;
            }
            // Methods of times and durations, which no name holds but `timestamp(...)` makes.
            _ => {
                if !target.may_be(&Type::List) && !matches!(target, Type::Map(_)) {
                    let text = format!(
                        "`{}` is {}, which has no `{}()`; texts have startsWith, endsWith, contains, matches and size",
                        show(of),
                        target.name(),
                        shorten(name)
                    );
                    return self.tell(text);
                }
                return Type::Any;
            }
        };
        if !target.may_be(&Type::Text) {
            return self.tell(format!("`{}` is {}, which has no `{name}()`; only text has", show(of), target.name()));
        }
        if given.len() != takes.len() {
            return self.tell(format!("`{name}()` takes one text, not {} values", given.len()));
        }
        if let Some((t, e)) = given.iter().zip(args).find(|(t, _)| !t.may_be(&Type::Text)) {
            return self.tell(format!("`{name}()` takes text, but `{}` is {}", show(&e.expr), t.name()));
        }
        gives
    }

    fn comprehension(&mut self, c: &ComprehensionExpr) -> Type {
        let over = self.expr(&c.iter_range.expr);
        if !(over.may_be(&Type::List) || matches!(over, Type::Map(_))) {
            let text =
                format!("a loop goes over a list or a map, but `{}` is {}", show(&c.iter_range.expr), over.name());
            self.tell(text);
        }
        let depth = self.scope.len();
        self.scope.extend([c.iter_var.clone(), c.accu_var.clone()]);
        self.scope.extend(c.iter_var2.clone());
        self.expr(&c.loop_step.expr);
        self.scope.truncate(depth);
        match (&c.accu_init.expr, &c.result.expr) {
            (Expr::List(_), _) => Type::List,
            _ => Type::Boolean,
        }
    }
}

fn index(a: &Expr, b: &Expr) -> cel::common::ast::CallExpr {
    let part = |e: &Expr| IdedExpr { id: 0, expr: e.clone() };
    cel::common::ast::CallExpr { func_name: "_[_]".into(), target: None, args: vec![part(a), part(b)] }
}

fn literal(l: &LiteralValue) -> Type {
    match l {
        LiteralValue::Boolean(_) => Type::Boolean,
        LiteralValue::Double(_) | LiteralValue::Int(_) | LiteralValue::UInt(_) => Type::Number,
        LiteralValue::String(_) => Type::Text,
        LiteralValue::Null => Type::Null,
        LiteralValue::Bytes(_) => Type::Any,
    }
}

fn shorten(s: &str) -> String {
    super::limits::shorten(s, 40)
}

/// Roughly what was written: names and literals; what is longer is left out.
fn show(e: &Expr) -> String {
    if let Some((of, name)) = super::limits::member(e) {
        return format!("{}.{}", show(of), shorten(name));
    }
    match e {
        Expr::Ident(n) => shorten(n.trim_start_matches('.')),
        Expr::Literal(LiteralValue::String(s)) => format!("'{}'", shorten(s.inner())),
        Expr::Literal(LiteralValue::Int(n)) => n.inner().to_string(),
        Expr::Literal(LiteralValue::UInt(n)) => n.inner().to_string(),
        Expr::Literal(LiteralValue::Double(n)) => n.inner().to_string(),
        Expr::Literal(LiteralValue::Boolean(b)) => b.inner().to_string(),
        Expr::Literal(LiteralValue::Null) => "null".into(),
        _ => "...".into(),
    }
}

#[cfg(test)]
mod tests;
