//! Imports an image and prints what came of it: `import STORE SOURCE [NAME]`. For measuring.
#![allow(clippy::print_stdout)]

use std::path::Path;
use std::time::Instant;

use hearth_image::{ImageStore, ImportOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [store, source, name @ ..] = args.as_slice() else { return Err("usage: import STORE SOURCE [NAME]".into()) };
    let store = ImageStore::open(Path::new(store))?;
    let start = Instant::now();
    let options = ImportOptions { name: name.first().cloned(), ..ImportOptions::default() };
    for record in store.import(Path::new(source), &options)? {
        println!("{record:?}");
        println!("{:?}", store.resolve(&record.reference)?);
    }
    println!("{:?}", start.elapsed());
    Ok(())
}
