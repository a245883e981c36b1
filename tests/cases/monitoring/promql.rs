//! Which labels the result of a PromQL expression has; and whether everything that it asks for is there to be had.

use std::collections::BTreeSet;

use promql_parser::parser::value::ValueType;
use promql_parser::parser::{BinaryExpr, Expr, LabelModifier, VectorSelector, parse};

use crate::reference::Reference;

/// What scraping adds, in Kubernetes.
const TARGET: [&str; 5] = ["instance", "job", "namespace", "node", "pod"];
/// Of Prometheus itself.
const OF_SCRAPES: [&str; 1] = ["up"];

pub(super) type Labels = BTreeSet<String>;

/// What can be asked for.
pub(super) struct Known {
    pub(super) metrics: Reference,
    pub(super) reasons: Labels,
}

impl Known {
    pub(super) fn read() -> Self {
        let reasons = include_str!("../../../deploy/reasons.md").lines();
        let code = |line: &str| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned());
        Self {
            metrics: Reference::read(),
            reasons: reasons.filter_map(code).collect(),
        }
    }

    /// The labels of the result, or what is wrong with the expression.
    pub(super) fn check(&self, text: &str) -> Result<Labels, String> {
        self.labels(&parse(text)?)
    }

    fn labels(&self, expr: &Expr) -> Result<Labels, String> {
        Ok(match expr {
            Expr::VectorSelector(selector) => self.selector(selector)?,
            Expr::MatrixSelector(matrix) => self.selector(&matrix.vs)?,
            Expr::Paren(inner) => self.labels(&inner.expr)?,
            Expr::Unary(inner) => self.labels(&inner.expr)?,
            Expr::Subquery(inner) => self.labels(&inner.expr)?,
            Expr::NumberLiteral(_) | Expr::StringLiteral(_) => Labels::new(),
            Expr::Extension(_) => return Err("an extension".to_owned()),
            Expr::Aggregate(aggregate) => {
                if let Some(param) = &aggregate.param {
                    self.labels(param)?;
                }
                let labels = self.labels(&aggregate.expr)?;
                let keeps = ["topk", "bottomk"].contains(&&*aggregate.op.to_string());
                match &aggregate.modifier {
                    None if keeps => labels,
                    None => Labels::new(),
                    Some(by) => grouped(by, &labels)?,
                }
            }
            Expr::Binary(binary) => self.binary(binary)?,
            Expr::Call(call) => {
                let mut labels = Labels::new();
                for arg in &call.args.args {
                    labels.append(&mut self.labels(arg)?);
                }
                if call.func.name == "histogram_quantile" && !labels.remove("le") {
                    return Err(format!("{expr} has lost its buckets"));
                }
                labels
            }
        })
    }

    fn selector(&self, selector: &VectorSelector) -> Result<Labels, String> {
        let name = selector
            .name
            .as_deref()
            .ok_or("a selector without a name")?;
        let target = TARGET.map(str::to_owned);
        let mut labels = Labels::from(target);
        let mut help = "";
        if !OF_SCRAPES.contains(&name) {
            let found = self.metrics.of(name);
            let (_, family) = found.ok_or_else(|| format!("{name} is not in the reference"))?;
            labels.extend(family.labels.iter().cloned());
            help = &family.help;
            if name.ends_with("_bucket") {
                labels.insert("le".to_owned());
            }
        }
        for matcher in &selector.matchers.matchers {
            let (label, value) = (&matcher.name, &matcher.value);
            if !labels.contains(label) {
                return Err(format!("{name} has no label {label}"));
            }
            // Values of ours come from closed lists.
            if TARGET.contains(&&**label) || !name.starts_with("ztunnel_") {
                continue;
            }
            for value in value.split('|') {
                let known = match &**label {
                    "reason" => self.reasons.contains(value),
                    "reporter" => ["source", "destination"].contains(&value),
                    _ => help.contains(&format!("`{value}`")),
                };
                if !known {
                    return Err(format!("{name} never has {label}={value}"));
                }
            }
        }
        Ok(labels)
    }

    fn binary(&self, binary: &BinaryExpr) -> Result<Labels, String> {
        let (left, right) = (self.labels(&binary.lhs)?, self.labels(&binary.rhs)?);
        let scalar = |side: &Expr| side.value_type() == ValueType::Scalar;
        if scalar(&binary.lhs) {
            return Ok(right);
        }
        if scalar(&binary.rhs) {
            return Ok(left);
        }
        let op = binary.op.to_string();
        if op == "or" {
            return Ok(left);
        }
        let matching = binary.modifier.as_ref().and_then(|m| m.matching.as_ref());
        let matched = match matching {
            None => [left.clone(), right],
            Some(by) => [grouped(by, &left)?, grouped(by, &right)?],
        };
        let [ours, theirs] = matched;
        if ours != theirs {
            return Err(format!("no pair of `{op}` is alike: {ours:?}, {theirs:?}"));
        }
        let keeps = ["and", "unless"].contains(&&*op) || binary.op.is_comparison_operator();
        Ok(if keeps { left } else { ours })
    }
}

fn grouped(by: &LabelModifier, labels: &Labels) -> Result<Labels, String> {
    let named: Labels = by.labels().labels.iter().cloned().collect();
    let lacking: Vec<_> = named.difference(labels).collect();
    if !lacking.is_empty() {
        return Err(format!("there is no {lacking:?}, only {labels:?}"));
    }
    Ok(if by.is_include() {
        named
    } else {
        labels - &named
    })
}
