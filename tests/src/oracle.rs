//! The oracle: what the database was after every single commit.

use std::collections::BTreeMap;
use std::path::Path;

use rusqlite::Connection;

/// The whole database file as it is when everything is checkpointed: the bytes a restore must give.
///
/// # Panics
/// When the database cannot be read.
#[must_use]
pub fn image_of(connection: &mut Connection) -> Vec<u8> {
    connection.serialize("main").expect("serialize").to_vec()
}

/// Every row of every table as SQL literals, with the schema: for states whose unused bytes may differ.
///
/// # Panics
/// When the database cannot be read.
#[must_use]
pub fn logical_dump(path: &Path) -> Vec<String> {
    let connection = Connection::open(path).expect("open");
    let mut tables = connection
        .prepare("SELECT name, sql FROM sqlite_schema WHERE type = 'table' ORDER BY name")
        .expect("schema");
    let tables: Vec<(String, Option<String>)> = tables
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .expect("schema")
        .map(|row| row.expect("row"))
        .collect();
    let mut lines = Vec::new();
    for (table, sql) in tables {
        lines.push(format!("{table}: {}", sql.unwrap_or_default()));
        let mut rows = connection.prepare(&format!("SELECT * FROM \"{table}\" ORDER BY 1")).expect("table");
        let columns = rows.column_count();
        let mut rows = rows.query([]).expect("rows");
        while let Some(row) = rows.next().expect("row") {
            let values: Vec<_> =
                (0..columns).map(|column| format!("{:?}", row.get_ref(column).expect("value"))).collect();
            lines.push(values.join("|"));
        }
    }
    lines
}

/// Remembers the image after each commit under a mark that the database itself carries.
#[derive(Default)]
pub struct Oracle {
    images: BTreeMap<i64, Vec<u8>>,
}

impl Oracle {
    /// Remembers the present image under `mark`.
    pub fn remember(&mut self, mark: i64, connection: &mut Connection) {
        self.images.insert(mark, image_of(connection));
    }

    /// The image under `mark`.
    #[must_use]
    pub fn image(&self, mark: i64) -> Option<&[u8]> {
        self.images.get(&mark).map(Vec::as_slice)
    }

    /// All marks, in order.
    pub fn marks(&self) -> impl Iterator<Item = i64> + '_ {
        self.images.keys().copied()
    }
}
