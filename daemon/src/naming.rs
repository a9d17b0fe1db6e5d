//! What a database is called: a path, a name or an id.

use std::path::Path;

use everwhen_proto::v1;

use crate::place::own_folder;

/// Whether a database goes by this name, path or id.
pub(crate) fn is_called(database: &v1::Database, name: &str) -> bool {
    [&database.name, &database.path, &database.id].into_iter().any(|known| known == name)
}

/// What a database is called: a path in its one spelling, a name or id as it is.
pub(crate) fn named(database: &str) -> String {
    if looks_like_a_path(database) { spelt(Path::new(database)) } else { database.to_owned() }
}

/// A name with a slash, or of a file (or its history) that is here, is a path.
fn looks_like_a_path(name: &str) -> bool {
    let path = Path::new(name);
    name.contains('/') || path.exists() || own_folder(path).exists()
}

/// The one spelling of a path: from the root, links of its folder resolved. The file itself need not exist.
pub(crate) fn spelt(path: &Path) -> String {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let spelt = match (absolute.canonicalize(), absolute.parent(), absolute.file_name()) {
        (Ok(canonical), _, _) => canonical,
        (Err(_), Some(folder), Some(name)) => {
            folder.canonicalize().map_or_else(|_| absolute.clone(), |folder| folder.join(name))
        }
        _ => absolute,
    };
    spelt.to_string_lossy().into_owned()
}
