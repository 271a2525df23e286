//! Constraints as masks: what they allow matches, nothing else is ever sampled, and no specification does harm.

pub mod schemas;

use std::sync::Arc;

use lima::engine::{RowOut, SampleRow, SamplingParams, SeqId, TokenId};
use lima::runner::sampler::{Sampler, Scratch};
use lima::text::{ConstraintError, Constraints, Spec};
use serde_json::{Value, json};

use crate::http::{END, TEMPLATE, VOCAB, renderer};
use schemas::{Rng, matches, schema};

/// Of a vocabulary of bytes.
fn constraints() -> Arc<Constraints> {
    Constraints::new(Arc::clone(renderer(TEMPLATE, &[]).tokenizer()), VOCAB, vec![END])
}

fn bit(mask: &[u32], token: TokenId) -> bool {
    mask.get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
}

/// What a model of random logits says, and whether it came to an end.
fn say(constraints: &Arc<Constraints>, spec: &Spec, rng: &mut Rng, most: usize) -> (String, bool) {
    let mut matcher = constraints.compile(spec).unwrap_or_else(|e| panic!("{e}: {spec:?}"));
    let (sampler, mut scratch) = (Sampler::new(VOCAB), Scratch::default());
    let params = Arc::new(SamplingParams { temperature: 1.5, seed: rng.next(), ..SamplingParams::default() });
    let (mut said, mut mask) = (Vec::new(), Vec::new());
    for position in 1..=most {
        matcher.mask(&mut mask).unwrap();
        // The end and quotation marks are a little more likely: texts end.
        let mut logits: Vec<f32> = (0..VOCAB).map(|_| rng.unit() * 4.0).collect();
        logits[END as usize] += 2.0;
        logits[usize::from(b'"')] += 2.0;
        let row = SampleRow {
            row: 0,
            seq: SeqId(0),
            params: &params,
            history: &[0],
            drafts: &[],
            num_prompt: 1,
            position,
            mask: Some(&mask),
        };
        let RowOut::Tokens(tokens) = sampler.sample_row(&mut logits, &row, &mut scratch) else { panic!("no token") };
        let token = tokens[0].token;
        assert!(bit(&mask, token), "{token} is not allowed after {:?}", String::from_utf8_lossy(&said));
        assert!(logits.iter().zip(0..).all(|(l, t)| bit(&mask, t) || *l == f32::NEG_INFINITY));
        if token == END {
            return (String::from_utf8(said).unwrap(), true);
        }
        matcher.accept(token).unwrap();
        said.push(token as u8);
    }
    (String::from_utf8_lossy(&said).into_owned(), false)
}

#[test]
fn random_texts_match_random_schemas() {
    let constraints = constraints();
    let mut ended = 0;
    for case in 0..60 {
        let mut rng = Rng::new(case);
        let schema = schema(&mut rng, 0);
        let spec = Spec::JsonSchema(schema.clone());
        for _ in 0..3 {
            let (text, end) = say(&constraints, &spec, &mut rng, 1000);
            if end {
                ended += 1;
                let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text} of {schema}"));
                assert!(matches(&schema, &value), "{text} does not match {schema}");
            }
        }
    }
    assert!(ended > 120, "only {ended} of 180 texts came to an end");
}

#[test]
fn other_texts_match_what_they_should() {
    let constraints = constraints();
    let mut rng = Rng::new(7);
    let mut each = |spec: Spec, is_right: &dyn Fn(&str) -> bool| {
        for _ in 0..20 {
            let (text, end) = say(&constraints, &spec, &mut rng, 400);
            assert!(!end || is_right(&text), "{text:?} of {spec:?}");
        }
    };
    each(Spec::JsonObject, &|text| serde_json::from_str::<Value>(text).is_ok_and(|v| v.is_object()));
    let telephone = |text: &str| {
        let (a, b) = text.split_once('-').unwrap();
        (a.len(), b.len()) == (3, 4) && text.bytes().all(|c| c == b'-' || c.is_ascii_digit())
    };
    each(Spec::Regex("[0-9]{3}-[0-9]{4}".into()), &telephone);
    let choices = ["yes", "no", "it's \"so\"/so\\so\n"].map(String::from).to_vec();
    each(Spec::Choice(choices.clone()), &|text| choices.iter().any(|c| c == text));
    let sums = "start: number (\"+\" number)*\nnumber: /[1-9][0-9]{0,2}/";
    each(Spec::Grammar(sums.into()), &|text| {
        text.split('+').all(|n| (1..=3).contains(&n.len()) && !n.starts_with('0') && n.parse::<u32>().is_ok())
    });
    // A list whose items refer to the list.
    let list = json!({"$defs": {"list": {"type": "object", "properties": {
        "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/list"}]}}, "required": ["next"],
        "additionalProperties": false}}, "$ref": "#/$defs/list"});
    each(Spec::JsonSchema(list), &|text| {
        let mut value: Value = serde_json::from_str(text).unwrap();
        while value.is_object() {
            value = value["next"].take();
        }
        value.is_null()
    });
}

#[test]
fn a_matcher_depends_on_its_own_tokens_alone() {
    let constraints = constraints();
    let spec = Spec::JsonSchema(json!({"type": "array", "items": {"type": "integer"}, "maxItems": 3}));
    let mut fresh = constraints.compile(&spec).unwrap();
    let mut used = constraints.compile(&spec).unwrap();
    for byte in b"[1,2" {
        used.accept(TokenId::from(*byte)).unwrap();
    }
    let mut fork = used.fork();
    let (mut a, mut b) = (Vec::new(), Vec::new());
    used.mask(&mut a).unwrap();
    fork.mask(&mut b).unwrap();
    assert_eq!(a, b);
    used.accept(TokenId::from(b']')).unwrap();
    used.mask(&mut a).unwrap();
    // Complete: only the end is left.
    assert!((0..VOCAB as TokenId).all(|t| bit(&a, t) == (t == END)));
    fork.accept(TokenId::from(b',')).unwrap();
    fresh.mask(&mut a).unwrap();
    assert!(bit(&a, TokenId::from(b'[')) && !bit(&a, END));
}

/// The pointer and reason for which a schema is refused.
fn refused(constraints: &Arc<Constraints>, schema: Value) -> (String, String) {
    match constraints.compile(&Spec::JsonSchema(schema.clone())) {
        Err(ConstraintError::Schema { pointer, reason }) => (pointer, reason),
        other => panic!("{other:?} for {schema:.300}"),
    }
}

#[test]
fn what_cannot_be_kept_to_is_refused_by_its_place() {
    let constraints = constraints();
    let property = |schema: Value| json!({"type": "object", "properties": {"a/b": {"type": "string"}, "c": schema}});
    for (schema, pointer, reason) in [
        (json!(3), "", "neither an object nor a boolean"),
        (json!(false), "", "false"),
        (json!({"not": {}}), "/not", "not supported"),
        (json!({"type": "array", "items": {"type": "integer"}, "uniqueItems": true}), "/uniqueItems", "not supported"),
        (property(json!({"if": {}, "then": {}})), "/properties/c/if", "not supported"),
        (property(json!({"mininum": 3})), "/properties/c/mininum", "not supported"),
        (property(json!({"type": "string", "format": "color"})), "/properties/c/format", "formats supported"),
        (property(json!({"$ref": "#/$defs/x"})), "/properties/c/$ref", "not there"),
        (property(json!({"$ref": "http://example.com/s"})), "/properties/c/$ref", "#/$defs/name"),
        (property(json!({"type": "text"})), "/properties/c", "Invalid type"),
        (property(json!({"type": "string", "pattern": "(?=a)b"})), "/properties/c", "cannot be compiled"),
        (property(json!({"type": "string", "pattern": "(a"})), "/properties/c", "cannot be compiled"),
        (property(json!({"oneOf": [{"type": "string"}, {"minLength": 2}]})), "/properties/c", "oneOf"),
        (json!({"anyOf": [{"type": "null"}, property(json!({"oneOf": [{}, {}]}))]}), "/anyOf/1/properties/c", "oneOf"),
        (json!({"properties": {"a/b": {"not": {}}}}), "/properties/a~1b/not", "not supported"),
        (json!({"type": "object", "x-guidance": {"lenient": true}}), "/x-guidance", "not supported"),
        (json!({"type": "integer", "minimum": 5, "maximum": 4}), "", "matches nothing"),
    ] {
        let (at, why) = refused(&constraints, schema.clone());
        assert!(at == pointer && why.contains(reason), "{schema} is refused at '{at}': it {why}");
    }
    // Unrequired properties that match nothing are merely absent.
    constraints.compile(&Spec::JsonSchema(property(json!(false)))).unwrap();
    let err = |spec: Spec| constraints.compile(&spec).unwrap_err().to_string();
    assert!(err(Spec::Regex("(a".into())).contains("unclosed"), "{}", err(Spec::Regex("(a".into())));
    assert!(err(Spec::Grammar("begin: \"a\"".into())).contains("start"));
    let none = Constraints::new(Arc::clone(renderer(TEMPLATE, &[]).tokenizer()), VOCAB, vec![]);
    assert_eq!(none.compile(&Spec::JsonObject).unwrap_err(), ConstraintError::NoEnd);
}

#[test]
fn old_keywords_and_labels_change_nothing() {
    let constraints = constraints();
    // In draft 4 `const` had no meaning: here it has.
    let spec = Spec::JsonSchema(json!({"$schema": "http://json-schema.org/draft-04/schema#", "const": 5,
        "title": "t", "description": "d", "default": 1, "examples": [1], "deprecated": true, "x-order": 1}));
    assert_eq!(say(&constraints, &spec, &mut Rng::new(1), 50), ("5".to_owned(), true));
}

/// Specifications that would have a naive compiler run out of time, memory or stack.
fn hostile() -> Vec<Spec> {
    let deep = |n: usize| (0..n).fold(json!({"type": "null"}), |s, _| json!({"type": "array", "items": s}));
    let chain: serde_json::Map<String, Value> =
        (0..3000).map(|i| (format!("d{i}"), json!({"$ref": format!("#/$defs/d{}", i + 1)}))).collect();
    let chain = json!({"$defs": chain, "$ref": "#/$defs/d0"});
    let objects: Vec<Value> =
        (0..300).map(|i| json!({"type": "object", "properties": {format!("p{i}"): {"type": "string"}}})).collect();
    let either: Vec<Value> = (0..40).map(|i| json!({"anyOf": [{"minLength": i}, {"maxLength": 50 + i}]})).collect();
    let rules: String = (0..4000).map(|i| format!("r{i}: r{}\n", i + 1)).collect();
    let terms: String = (0..4000).map(|i| format!("T{i}: T{} \"a\"\n", i + 1)).collect();
    vec![
        Spec::Grammar(format!("start: {}\"a\"{}", "(".repeat(30_000), ")".repeat(30_000))),
        Spec::Grammar(format!("start: {}\"a\"", "(".repeat(60_000))),
        Spec::Grammar(format!("start: r0\n{rules}r4000: \"a\"")),
        Spec::Grammar(format!("start: T0\n{terms}T4000: \"a\"")),
        Spec::Grammar("start: start \"a\" | start start |".into()),
        Spec::Grammar("start: start".into()),
        Spec::Grammar("start: %json {\"$ref\": \"#\"}".into()),
        Spec::Grammar("start: a{1000000}\na: \"a\"".into()),
        Spec::Grammar("start: %json ".into()),
        Spec::Grammar(String::new()),
        Spec::Regex("(a+)+$".into()),
        Spec::Regex("(a|a)*b".into()),
        Spec::Regex("(.*a){25}".into()),
        Spec::Regex("((a{100}){100}){100}".into()),
        Spec::Regex("a{2000000000}".into()),
        Spec::Regex("(".repeat(16_000)),
        Spec::Regex(format!("{}a{}", "(".repeat(8_000), ")*".repeat(4_000))),
        Spec::Regex("[a-z]*[aeiou][a-z]{300}".into()),
        Spec::Regex(String::new()),
        Spec::JsonSchema(json!({})),
        Spec::JsonSchema(json!(true)),
        Spec::JsonSchema(json!(false)),
        Spec::JsonSchema(json!({"$ref": "#"})),
        Spec::JsonSchema(json!({"$ref": "#", "type": "object"})),
        Spec::JsonSchema(json!({"allOf": [{"$ref": "#"}, {"$ref": "#"}]})),
        Spec::JsonSchema(json!({"properties": {"a": {"$ref": "#"}}, "required": ["a"], "type": "object"})),
        Spec::JsonSchema(chain),
        Spec::JsonSchema(deep(150)),
        Spec::JsonSchema(json!({"oneOf": objects})),
        Spec::JsonSchema(json!({"anyOf": objects})),
        Spec::JsonSchema(json!({"allOf": either, "type": "string"})),
        Spec::JsonSchema(json!({"type": "array", "minItems": 1_000_000_000, "items": {}})),
        Spec::JsonSchema(json!({"type": "string", "minLength": 100_000_000})),
        Spec::JsonSchema(json!({"type": "string", "pattern": "(.*a){30}"})),
        Spec::JsonSchema(json!({"type": "integer", "multipleOf": 1_000_003})),
        Spec::JsonSchema(json!({"type": "number", "multipleOf": 1e-9})),
        Spec::JsonSchema(json!({"enum": []})),
        Spec::JsonSchema(json!({"anyOf": []})),
        Spec::JsonSchema(json!({"type": [], "$defs": 3})),
        Spec::JsonSchema(json!({"required": 3, "properties": []})),
        Spec::Choice((0..1024).map(|i| format!("{i}{}", "x".repeat(50))).collect()),
    ]
}

#[test]
fn no_specification_does_harm() {
    let constraints = constraints();
    for spec in hostile() {
        // It compiles or is refused in a line; what compiles can be walked.
        match constraints.compile(&spec) {
            Err(error) => {
                let message = error.to_string();
                assert!(message.len() < 500 && !message.contains(char::is_control), "{message}");
            }
            Ok(mut matcher) => {
                let mut mask = Vec::new();
                for _ in 0..40 {
                    if matcher.mask(&mut mask).is_err() {
                        break;
                    }
                    let Some(token) = (0..VOCAB as TokenId).find(|t| *t != END && bit(&mask, *t)) else { break };
                    if matcher.accept(token).is_err() {
                        break;
                    }
                }
            }
        }
        // And others are served.
        assert_eq!(say(&constraints, &Spec::Choice(vec!["a".into()]), &mut Rng::new(0), 5), ("a".to_owned(), true));
    }
}
