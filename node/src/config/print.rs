//! A configuration written back as TOML.

use std::collections::BTreeMap;

use toml::{Table, Value};

use super::Config;

impl Config {
    /// Every field with the value in force, for `marram config print`.
    ///
    /// Fields without a value (`location`, `mesh.advertise`) are left out. The text parses back to an equal
    /// configuration.
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).unwrap_or_default()
    }

    /// Only what differs from the defaults: what `init` and `join` write.
    #[must_use]
    pub fn to_toml_brief(&self) -> String {
        let (mut mine, defaults) = (self.table(), Self::default().table());
        subtract(&mut mine, &defaults);
        toml::to_string_pretty(&mine).unwrap_or_default()
    }

    fn table(&self) -> Table {
        Table::try_from(self).unwrap_or_default()
    }
}

fn subtract(table: &mut Table, defaults: &Table) {
    let kept: BTreeMap<String, Value> = std::mem::take(table)
        .into_iter()
        .filter_map(|(key, value)| match (value, defaults.get(&key)) {
            (value, Some(default)) if value == *default => None,
            (Value::Table(mut inner), Some(Value::Table(default))) => {
                subtract(&mut inner, default);
                Some((key, Value::Table(inner)))
            }
            (value, _) => Some((key, value)),
        })
        .collect();
    table.extend(kept);
}
