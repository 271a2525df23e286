//! Objects that include others.

use std::collections::{BTreeMap, BTreeSet};

use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{AdditionalProperties, AllOf, Object, Schema};

type Schemas = BTreeMap<String, RefOr<Schema>>;

/// Makes one closed object of each that includes others (`#[serde(flatten)]`): an `allOf` of closed objects would
/// accept nothing, as each knows its own properties alone. What is included, and no root itself, goes.
pub fn flatten(schemas: &mut Schemas, roots: &[String]) {
    let mut included = BTreeSet::new();
    let merged: Vec<(String, Object)> = schemas
        .iter()
        .filter_map(|(name, schema)| match schema {
            RefOr::T(Schema::AllOf(all)) => Some((name.clone(), merged(schemas, all, &mut included)?)),
            _ => None,
        })
        .collect();
    for (name, object) in merged {
        schemas.insert(name, RefOr::T(Schema::Object(object)));
    }
    schemas.retain(|name, _| roots.contains(name) || !included.contains(name));
}

/// The properties of all parts, if all are objects.
fn merged(schemas: &Schemas, all: &AllOf, included: &mut BTreeSet<String>) -> Option<Object> {
    let mut parts = Vec::new();
    for item in &all.items {
        match item {
            RefOr::T(Schema::Object(object)) => parts.push(object.clone()),
            RefOr::T(_) => return None,
            RefOr::Ref(reference) => {
                let name = reference.ref_location.rsplit('/').next()?;
                included.insert(name.to_owned());
                match schemas.get(name)? {
                    RefOr::T(Schema::Object(object)) => parts.push(object.clone()),
                    RefOr::T(Schema::AllOf(all)) => parts.push(merged(schemas, all, included)?),
                    _ => return None,
                }
            }
        }
    }
    // The object's own properties come last.
    let mut whole = parts.pop()?;
    for part in parts {
        whole.properties.extend(part.properties);
        whole.required.extend(part.required);
    }
    whole.description = all.description.clone().or(whole.description);
    whole.additional_properties = Some(Box::new(AdditionalProperties::FreeForm(false)));
    Some(whole)
}
