//! The generated code under `src/generated` is checked in, so that building Everwhen needs no protobuf compiler of
//! any kind. This test compiles the schemas anew (in pure Rust) and fails when the checked-in code is not what they
//! give. `EVERWHEN_REGENERATE=1 cargo test -p everwhen-proto` writes it instead.

#![expect(clippy::unwrap_used, reason = "a test, helpers included")]

use std::path::{Path, PathBuf};

use prost::Message;

fn schemas(root: &Path, folder: &str) -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(root.join(folder))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "proto"))
        .collect();
    files.sort();
    files
}

fn generate(root: &Path, folder: &str, api: bool, out: &Path) {
    let files = schemas(root, folder);
    let descriptors = protox::compile(&files, [root]).unwrap();
    if api {
        std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec()).unwrap();
    }
    tonic_prost_build::configure()
        .out_dir(out)
        .build_client(api)
        .build_server(api)
        .emit_rerun_if_changed(false)
        .compile_fds(descriptors)
        .unwrap();
}

#[test]
fn the_generated_code_is_what_the_schemas_give() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let fresh = tempfile::tempdir().unwrap();
    generate(root, "everwhen/store/v1", false, fresh.path());
    generate(root, "everwhen/v1", true, fresh.path());
    let checked_in = root.join("src/generated");
    for entry in std::fs::read_dir(fresh.path()).unwrap() {
        let (path, name) = (entry.as_ref().unwrap().path(), entry.unwrap().file_name());
        if std::env::var_os("EVERWHEN_REGENERATE").is_some() {
            std::fs::copy(&path, checked_in.join(&name)).unwrap();
        }
        let same = std::fs::read(&path).unwrap() == std::fs::read(checked_in.join(&name)).unwrap_or_default();
        assert!(same, "{} is stale: run EVERWHEN_REGENERATE=1 cargo test -p everwhen-proto", name.display());
    }
}
