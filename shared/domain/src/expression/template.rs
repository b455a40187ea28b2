//! Templates: texts with `${{ expression }}` in them. A text that is exactly one expression keeps its type; `$${{` stands
//! for a literal `${{`. An expression that is a reference (`secrets.x`, `steps.x.outputs.y`) renders to its marker,
//! unless the context holds `steps`: then it is computed like any other.

use super::{Context, Expression, ExpressionError, kind};
use crate::reference::Reference;
use serde_json::{Map, Value};
use std::sync::Arc;

/// A JSON value whose texts are templates, compiled.
#[derive(Debug, Clone)]
pub struct Template {
    node: Node,
}

#[derive(Debug, Clone)]
enum Node {
    /// Neither it nor anything in it is computed.
    Fixed(Value),
    Text(Vec<Piece>),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

#[derive(Debug, Clone)]
enum Piece {
    Literal(String),
    Computed(Arc<Expression>),
    /// Filled in by whoever carries the step out; the expression is what validation looks at.
    Reference(Reference, Arc<Expression>),
}

impl Template {
    /// Compiles every text of `value`, keys excepted.
    pub fn compile(value: &Value) -> Result<Template, ExpressionError> {
        node(value).map(|node| Template { node })
    }

    /// Its value, if nothing in it is computed.
    pub fn fixed(&self) -> Option<&Value> {
        match &self.node {
            Node::Fixed(v) => Some(v),
            _ => None,
        }
    }

    /// Every expression in it.
    pub fn expressions(&self) -> Vec<&Expression> {
        let mut out = Vec::new();
        collect(&self.node, &mut out);
        out
    }

    /// Every reference in it, as the flow has it: a step's name is not yet that of the plan.
    pub fn references(&self) -> Vec<&Reference> {
        let mut out = Vec::new();
        collect_references(&self.node, &mut out);
        out
    }

    pub fn reads(&self, root: &str) -> bool {
        self.expressions().iter().any(|e| e.reads(root))
    }

    /// The value with its expressions computed.
    pub fn render(&self, context: &Context) -> Result<Value, ExpressionError> {
        render_node(&self.node, context)
    }
}

/// A text with its expressions computed.
pub fn render(template: &str, context: &Context) -> Result<Value, ExpressionError> {
    text(template)?.render(context)
}

/// A value with the expressions in all its texts computed.
pub fn render_value(value: &Value, context: &Context) -> Result<Value, ExpressionError> {
    Template::compile(value)?.render(context)
}

/// Whether any expression of the text reads `root`.
pub fn template_reads(template: &str, root: &str) -> Result<bool, ExpressionError> {
    text(template).map(|t| t.reads(root))
}

/// A value as the template that renders to it.
pub(crate) fn escape(value: &Value) -> Value {
    match value {
        Value::String(s) if s.contains("${{") => Value::String(s.replace("${{", "$${{")),
        Value::Array(l) => Value::Array(l.iter().map(escape).collect()),
        Value::Object(m) => Value::Object(m.iter().map(|(k, v)| (k.clone(), escape(v))).collect()),
        other => other.clone(),
    }
}

fn text(template: &str) -> Result<Template, ExpressionError> {
    Ok(Template { node: text_node(template)? })
}

fn node(value: &Value) -> Result<Node, ExpressionError> {
    Ok(match value {
        Value::String(s) => text_node(s)?,
        Value::Array(l) => {
            let items = l.iter().map(node).collect::<Result<Vec<_>, _>>()?;
            if items.iter().all(|n| matches!(n, Node::Fixed(_))) { fixed_list(items) } else { Node::List(items) }
        }
        Value::Object(m) => {
            let items =
                m.iter().map(|(k, v)| Ok((k.clone(), node(v)?))).collect::<Result<Vec<_>, ExpressionError>>()?;
            if items.iter().all(|(_, n)| matches!(n, Node::Fixed(_))) { fixed_map(items) } else { Node::Map(items) }
        }
        other => Node::Fixed(other.clone()),
    })
}

fn fixed_list(items: Vec<Node>) -> Node {
    Node::Fixed(Value::Array(items.into_iter().filter_map(Node::fixed).collect()))
}

fn fixed_map(items: Vec<(String, Node)>) -> Node {
    Node::Fixed(Value::Object(items.into_iter().filter_map(|(k, n)| Some((k, n.fixed()?))).collect::<Map<_, _>>()))
}

impl Node {
    fn fixed(self) -> Option<Value> {
        match self {
            Node::Fixed(v) => Some(v),
            _ => None,
        }
    }
}

fn text_node(template: &str) -> Result<Node, ExpressionError> {
    let mut pieces = Vec::new();
    let mut literal = String::new();
    let mut rest = template;
    while let Some(at) = rest.find("${{") {
        if rest[..at].ends_with('$') {
            // `$${{`: one `$` less, and the rest as it stands.
            literal.push_str(&rest[..at - 1]);
            literal.push_str("${{");
            rest = &rest[at + 3..];
            continue;
        }
        literal.push_str(&rest[..at]);
        let inner = &rest[at + 3..];
        let unclosed = || {
            let before = template.len() - rest.len() + at;
            ExpressionError::Unclosed { character: template[..before].chars().count() + 1 }
        };
        let end = closing(inner).ok_or_else(unclosed)?;
        if !literal.is_empty() {
            pieces.push(Piece::Literal(std::mem::take(&mut literal)));
        }
        let source = &inner[..end];
        pieces.push(match Reference::of(source) {
            // A secret's name may hold `-`, which CEL would read as a minus.
            Some(r @ Reference::Secret { .. }) if source.contains('-') && !source.contains('[') => {
                let source = source.trim().replacen("secrets.", "secrets[\"", 1) + "\"]";
                Piece::Reference(r, Arc::new(Expression::compile(&source)?))
            }
            Some(r) => Piece::Reference(r, Arc::new(Expression::compile(source)?)),
            None => Piece::Computed(Arc::new(Expression::compile(source)?)),
        });
        rest = &inner[end + 2..];
    }
    literal.push_str(rest);
    if pieces.is_empty() {
        return Ok(Node::Fixed(Value::String(literal)));
    }
    if !literal.is_empty() {
        pieces.push(Piece::Literal(literal));
    }
    Ok(Node::Text(pieces))
}

/// Where the `}}` stands that ends the expression: not one inside quotes or of nested maps.
fn closing(s: &str) -> Option<usize> {
    let bytes = s.as_bytes();
    let (mut i, mut depth, mut quote) = (0, 0usize, None);
    while i < bytes.len() {
        let c = bytes[i];
        match (quote, c) {
            (Some(_), b'\\') => i += 1,
            (Some(q), _) if c == q => quote = None,
            (Some(_), _) => {}
            (None, b'\'' | b'"') => quote = Some(c),
            (None, b'{') => depth += 1,
            (None, b'}') if depth > 0 => depth -= 1,
            (None, b'}') if bytes.get(i + 1) == Some(&b'}') => return Some(i),
            _ => {}
        }
        i += 1;
    }
    None
}

fn collect<'n>(n: &'n Node, out: &mut Vec<&'n Expression>) {
    match n {
        Node::Fixed(_) => {}
        Node::Text(pieces) => out.extend(pieces.iter().filter_map(|p| match p {
            Piece::Computed(e) | Piece::Reference(_, e) => Some(&**e),
            Piece::Literal(_) => None,
        })),
        Node::List(l) => l.iter().for_each(|n| collect(n, out)),
        Node::Map(m) => m.iter().for_each(|(_, n)| collect(n, out)),
    }
}

fn collect_references<'n>(n: &'n Node, out: &mut Vec<&'n Reference>) {
    match n {
        Node::Fixed(_) => {}
        Node::Text(pieces) => out.extend(pieces.iter().filter_map(|p| match p {
            Piece::Reference(r, _) => Some(r),
            Piece::Literal(_) | Piece::Computed(_) => None,
        })),
        Node::List(l) => l.iter().for_each(|n| collect_references(n, out)),
        Node::Map(m) => m.iter().for_each(|(_, n)| collect_references(n, out)),
    }
}

fn render_node(n: &Node, context: &Context) -> Result<Value, ExpressionError> {
    Ok(match n {
        Node::Fixed(v) => v.clone(),
        Node::Text(pieces) => {
            match pieces.as_slice() {
                [Piece::Computed(e)] => return e.eval(context),
                [Piece::Reference(r, e)] if context.knows(r) => return e.eval(context),
                _ => {}
            }
            let mut out = String::new();
            for p in pieces {
                match p {
                    Piece::Literal(l) => out.push_str(l),
                    Piece::Reference(r, _) if !context.knows(r) => out.push_str(&context.marker(r)),
                    Piece::Computed(e) | Piece::Reference(_, e) => match e.eval(context)? {
                        Value::String(s) => out.push_str(&s),
                        v @ (Value::Number(_) | Value::Bool(_)) => out.push_str(&v.to_string()),
                        other => {
                            return Err(ExpressionError::NotText { expression: e.source().into(), got: kind(&other) });
                        }
                    },
                }
            }
            Value::String(out)
        }
        Node::List(l) => Value::Array(l.iter().map(|n| render_node(n, context)).collect::<Result<_, _>>()?),
        Node::Map(m) => {
            Value::Object(m.iter().map(|(k, n)| Ok((k.clone(), render_node(n, context)?))).collect::<Result<_, _>>()?)
        }
    })
}
