//! YAML as JSON, for tests that read examples.

use serde_json::{Map, Value};
use yaml_rust2::{Yaml, YamlLoader};

/// The only document of a text.
pub fn load(text: &str) -> Value {
    let documents = YamlLoader::load_from_str(text).unwrap();
    assert_eq!(documents.len(), 1);
    json(&documents[0])
}

fn json(yaml: &Yaml) -> Value {
    match yaml {
        Yaml::Hash(hash) => {
            let entry = |(key, value): (&Yaml, &Yaml)| (key.as_str().unwrap().to_owned(), json(value));
            Value::Object(hash.iter().map(entry).collect::<Map<_, _>>())
        }
        Yaml::Array(items) => Value::Array(items.iter().map(json).collect()),
        Yaml::String(text) | Yaml::Real(text) => Value::String(text.clone()),
        Yaml::Integer(number) => (*number).into(),
        Yaml::Boolean(truth) => (*truth).into(),
        Yaml::Null => Value::Null,
        Yaml::Alias(_) | Yaml::BadValue => panic!("not plain: {yaml:?}"),
    }
}
