//! The Rust originals behind a C interface, so that they run in the benchmark's own process, round by round with ours.
//! Each round returns nanoseconds for one pass over what was given to it.

use std::ffi::{c_char, CStr};
use std::hint::black_box;
use std::time::Instant;

use redb4::ReadableDatabase;

struct Lines(Vec<String>);

unsafe fn text<'a>(at: *const c_char) -> &'a str {
    CStr::from_ptr(at).to_str().expect("UTF-8")
}

fn timed(mut pass: impl FnMut()) -> u64 {
    let start = Instant::now();
    pass();
    u64::try_from(start.elapsed().as_nanos()).expect("short")
}

/// # Safety
/// `joined` is a NUL-terminated text of lines.
#[no_mangle]
pub unsafe extern "C" fn lines(joined: *const c_char) -> *mut std::ffi::c_void {
    Box::into_raw(Box::new(Lines(text(joined).lines().map(String::from).collect()))).cast()
}

/// # Safety
/// `given` comes from `lines`.
#[no_mangle]
pub unsafe extern "C" fn canonical_round(given: *const std::ffi::c_void) -> u64 {
    let lines = &*given.cast::<Lines>();
    timed(|| {
        for line in &lines.0 {
            let whole = line.parse::<oci_client::Reference>().map_or_else(|_| line.clone(), |reference| reference.whole());
            black_box(whole);
        }
    })
}

/// # Safety
/// `given` comes from `lines`.
#[no_mangle]
pub unsafe extern "C" fn sanitize_round(given: *const std::ffi::c_void) -> u64 {
    let lines = &*given.cast::<Lines>();
    timed(|| {
        for line in &lines.0 {
            black_box(black_box(line).replace(['/', ':', '@'], "_"));
        }
    })
}

const TABLE2: redb2::TableDefinition<&str, &[u8]> = redb2::TableDefinition::new("blob_data");
const TABLE4: redb4::TableDefinition<&str, &[u8]> = redb4::TableDefinition::new("blob_data");

/// Writes `count` entries with values of `value_bytes`, by redb 2 (format 2) or 4 (format 3).
///
/// # Safety
/// `path` is a NUL-terminated text.
#[no_mangle]
pub unsafe extern "C" fn redb_write(path: *const c_char, version: u32, count: u64, value_bytes: u64) {
    let value = vec![b'x'; usize::try_from(value_bytes).expect("small")];
    let key = |i: u64| format!("manifest:docker.io/library/image-{i}:latest");
    if version == 2 {
        let database = redb2::Database::create(text(path)).expect("create");
        let transaction = database.begin_write().expect("begin");
        {
            let mut table = transaction.open_table(TABLE2).expect("table");
            for i in 0..count {
                table.insert(key(i).as_str(), value.as_slice()).expect("insert");
            }
        }
        transaction.commit().expect("commit");
    } else {
        let database = redb4::Database::create(text(path)).expect("create");
        let transaction = database.begin_write().expect("begin");
        {
            let mut table = transaction.open_table(TABLE4).expect("table");
            for i in 0..count {
                table.insert(key(i).as_str(), value.as_slice()).expect("insert");
            }
        }
        transaction.commit().expect("commit");
    }
}

/// Commits once more while the file is open elsewhere: a value under `name`, after `pause_commits` commits of others.
///
/// # Safety
/// `path` and `name` are NUL-terminated texts.
#[no_mangle]
pub unsafe extern "C" fn redb4_commit_many(path: *const c_char, name: *const c_char, commits: u64) {
    let database = redb4::Database::create(text(path)).expect("open");
    for i in 0..commits {
        let transaction = database.begin_write().expect("begin");
        {
            let mut table = transaction.open_table(TABLE4).expect("table");
            table.insert(text(name), i.to_le_bytes().as_slice()).expect("insert");
            table.insert(format!("manifest:filler-{}", i % 50).as_str(), vec![7u8; 3000].as_slice()).expect("insert");
        }
        transaction.commit().expect("commit");
    }
}

struct Kept {
    table: redb4::ReadOnlyTable<&'static str, &'static [u8]>,
    _database: redb4::ReadOnlyDatabase,
}

/// # Safety
/// `path` is a NUL-terminated text.
#[no_mangle]
pub unsafe extern "C" fn redb4_keep(path: *const c_char) -> *mut std::ffi::c_void {
    let database = redb4::ReadOnlyDatabase::open(text(path)).expect("open");
    let table = database.begin_read().expect("begin").open_table(TABLE4).expect("table");
    Box::into_raw(Box::new(Kept { table, _database: database })).cast()
}

/// # Safety
/// `kept` comes from `redb4_keep` and `given` from `lines`.
#[no_mangle]
pub unsafe extern "C" fn redb4_get_round(kept: *const std::ffi::c_void, given: *const std::ffi::c_void) -> u64 {
    let (kept, keys) = (&*kept.cast::<Kept>(), &*given.cast::<Lines>());
    timed(|| {
        for key in &keys.0 {
            black_box(kept.table.get(key.as_str()).expect("get").map(|value| value.value().to_vec()));
        }
    })
}

/// # Safety
/// `path` is a NUL-terminated text and `given` comes from `lines`.
#[no_mangle]
pub unsafe extern "C" fn redb4_open_round(path: *const c_char, given: *const std::ffi::c_void) -> u64 {
    let keys = &*given.cast::<Lines>();
    timed(|| {
        for key in &keys.0 {
            let database = redb4::ReadOnlyDatabase::open(text(path)).expect("open");
            let table = database.begin_read().expect("begin").open_table(TABLE4).expect("table");
            black_box(table.get(key.as_str()).expect("get").map(|value| value.value().to_vec()));
        }
    })
}

/// # Safety
/// `path` is a NUL-terminated text and `given` comes from `lines`.
#[no_mangle]
pub unsafe extern "C" fn rusqlite_round(path: *const c_char, given: *const std::ffi::c_void) -> u64 {
    let keys = &*given.cast::<Lines>();
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY | rusqlite::OpenFlags::SQLITE_OPEN_URI;
    let database = rusqlite::Connection::open_with_flags(text(path), flags).expect("open");
    let mut select = database.prepare("SELECT data FROM blobs WHERE digest = ?").expect("prepare");
    let mut blob = |key: &str| select.query_row([key], |row| row.get::<_, Vec<u8>>(0)).expect("row");
    blob(&keys.0[0]);
    timed(|| {
        for key in &keys.0 {
            black_box(blob(key));
        }
    })
}
