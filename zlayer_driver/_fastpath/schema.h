/* The fields of the documents that image facts come from, as their writers type them: OCI image spec 1.1 (image.manifest.v1, image.config.v1)
   and ZLayer's metadata.json. `answer` names the slot that a field's text goes to; for a map of texts, the text under `key`. */
#ifndef ZLAYER_SCHEMA_H
#define ZLAYER_SCHEMA_H

#include <stdint.h>

enum { MAX_DOCUMENT_BYTES = 4 << 20, MAX_DEPTH = 127, NO_ANSWER = -1 };

typedef enum { TEXT, TEXTS, TEXT_MAP, ANY_MAP, INTEGER, STRUCT, STRUCTS } Kind;

typedef struct Schema Schema;

typedef struct {
    const char *name;
    int size;
    Kind kind;
    int required;
    int answer;
    const char *key;
    int64_t low;
    uint64_t high;
    const Schema *schema;
} Field;

struct Schema {
    int count;
    const Field *fields;
};

#define NAMED(text) .name = text, .size = sizeof(text) - 1
#define SILENT .answer = NO_ANSWER
#define U64(text) { NAMED(text), INTEGER, SILENT, .high = UINT64_MAX }
#define SCHEMA(name, list) static const Schema name = { sizeof(list) / sizeof(list[0]), list }

#define DESCRIPTOR_FIELDS(digest_answer) \
    { NAMED("mediaType"), TEXT, .required = 1, SILENT }, \
    { NAMED("digest"), TEXT, .required = 1, .answer = digest_answer }, \
    { NAMED("size"), INTEGER, .required = 1, SILENT, .low = INT64_MIN, .high = INT64_MAX }, \
    { NAMED("urls"), TEXTS, SILENT }, \
    { NAMED("annotations"), TEXT_MAP, SILENT }

static const Field descriptor_fields[] = { DESCRIPTOR_FIELDS(NO_ANSWER) };
static const Field config_descriptor_fields[] = { DESCRIPTOR_FIELDS(0) };
SCHEMA(descriptor_schema, descriptor_fields);
SCHEMA(config_descriptor_schema, config_descriptor_fields);

static const Field manifest_fields[] = {
    { NAMED("schemaVersion"), INTEGER, .required = 1, SILENT, .high = UINT8_MAX },
    { NAMED("mediaType"), TEXT, SILENT },
    { NAMED("config"), STRUCT, .required = 1, SILENT, .schema = &config_descriptor_schema },
    { NAMED("layers"), STRUCTS, .required = 1, SILENT, .schema = &descriptor_schema },
    { NAMED("subject"), STRUCT, SILENT, .schema = &descriptor_schema },
    { NAMED("artifactType"), TEXT, SILENT },
    { NAMED("annotations"), TEXT_MAP, .answer = 1, .key = "com.zlayer.runtime" },
};
SCHEMA(MANIFEST_SCHEMA, manifest_fields);

static const Field healthcheck_fields[] = {
    { NAMED("Test"), TEXTS, SILENT },
    U64("Interval"), U64("Timeout"), U64("StartPeriod"),
    { NAMED("Retries"), INTEGER, SILENT, .high = UINT32_MAX },
};
SCHEMA(healthcheck_schema, healthcheck_fields);

static const Field run_config_fields[] = {
    { NAMED("Entrypoint"), TEXTS, SILENT },
    { NAMED("Cmd"), TEXTS, SILENT },
    { NAMED("Env"), TEXTS, SILENT },
    { NAMED("Shell"), TEXTS, SILENT },
    { NAMED("WorkingDir"), TEXT, SILENT },
    { NAMED("User"), TEXT, SILENT },
    { NAMED("StopSignal"), TEXT, SILENT },
    { NAMED("ExposedPorts"), ANY_MAP, SILENT },
    { NAMED("Volumes"), ANY_MAP, SILENT },
    { NAMED("Labels"), TEXT_MAP, .answer = 3, .key = "com.zlayer.isolation" },
    { NAMED("Healthcheck"), STRUCT, SILENT, .schema = &healthcheck_schema },
};
SCHEMA(run_config_schema, run_config_fields);

static const Field config_fields[] = {
    { NAMED("config"), STRUCT, SILENT, .schema = &run_config_schema },
    { NAMED("os"), TEXT, .answer = 2 },
    { NAMED("os.version"), TEXT, SILENT },
};
SCHEMA(CONFIG_SCHEMA, config_fields);

static const Field sidecar_fields[] = {
    { NAMED("reference"), TEXT, .required = 1, SILENT },
    { NAMED("os"), TEXT, .required = 1, .answer = 2 },
    { NAMED("architecture"), TEXT, .required = 1, SILENT },
    U64("size"),
    { NAMED("digest"), TEXT, SILENT },
    { NAMED("created"), TEXT, SILENT },
};
SCHEMA(SIDECAR_SCHEMA, sidecar_fields);

/* Bytes that stand for themselves inside a JSON string: ASCII but controls, quote and backslash. */
static inline int is_plain(unsigned char byte) {
    return byte >= 0x20 && byte < 0x80 && byte != '"' && byte != '\\';
}

#undef NAMED
#undef SILENT
#undef U64
#undef SCHEMA
#undef DESCRIPTOR_FIELDS
#endif
