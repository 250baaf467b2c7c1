// SPDX-License-Identifier: Apache-2.0
// Stands for cimfs.dll and cimwriter.dll: notes each call, keeps the rules that the API's reference gives, and fails
// where a test asks for it. It makes the files that the calls make, empty, and no images.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifndef _WIN32
#include <strings.h>
#endif

#ifdef _WIN32
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

typedef int32_t HRESULT;
#define WIN32_ERROR(code) ((HRESULT)(0x80070000u | (code)))
#define NOT_FOUND WIN32_ERROR(2)
#define PATH_NOT_FOUND WIN32_ERROR(3)
#define ACCESS_DENIED WIN32_ERROR(5)
#define INVALID_HANDLE WIN32_ERROR(6)
#define SHARING_VIOLATION WIN32_ERROR(32)
#define INVALID_PARAMETER WIN32_ERROR(87)
#define ALREADY_EXISTS WIN32_ERROR(183)

typedef struct {
    uint32_t attributes;
    int64_t size, creation, write, change, access;
    const uint8_t *security;
    uint32_t security_size;
    const uint8_t *reparse;
    uint32_t reparse_size;
    const uint8_t *extended;
    uint32_t extended_size;
} Metadata;

typedef struct {
    const uint16_t *directory, *name;
} ImagePath;

typedef struct {
    uint8_t bytes[16];
} Guid;

#define LINES 65536
#define PATHS 4096
static char log_text[LINES * 16];
static char details[LINES];
static char failing[64];
static int countdown;
static HRESULT failure;

static char *paths[PATHS];
static char *targets[PATHS];
static int path_count, image_open, stream_open, committed;
static uint64_t stream_left;

// Texts ------------------------------------------------------------------------------------------------------------

static const char *text(const uint16_t *units) {
    static char kept[8][2048];
    static int turn;
    if (!units) return "-";
    char *at = kept[turn = (turn + 1) % 8];
    char *start = at;
    for (; *units && at < start + 2000; units++) {
        unsigned unit = *units;
        if (unit >= 0xD800 && unit < 0xDC00 && units[1] >= 0xDC00 && units[1] < 0xE000) {
            unsigned point = 0x10000 + ((unit - 0xD800) << 10) + (*++units - 0xDC00u);
            *at++ = (char)(0xF0 | point >> 18);
            *at++ = (char)(0x80 | (point >> 12 & 0x3F));
            *at++ = (char)(0x80 | (point >> 6 & 0x3F));
            *at++ = (char)(0x80 | (point & 0x3F));
        } else if (unit >= 0x800) {
            *at++ = (char)(0xE0 | unit >> 12);
            *at++ = (char)(0x80 | (unit >> 6 & 0x3F));
            *at++ = (char)(0x80 | (unit & 0x3F));
        } else if (unit >= 0x80) {
            *at++ = (char)(0xC0 | unit >> 6);
            *at++ = (char)(0x80 | (unit & 0x3F));
        } else {
            *at++ = (char)unit;
        }
    }
    *at = 0;
    return start;
}

static void hex(char *out, const uint8_t *bytes, uint32_t size) {
    for (uint32_t at = 0; at < size; at++) sprintf(out + 2 * at, "%02x", bytes[at]);
    out[2 * size] = 0;
}

static void note(const char *name, const char *first, const char *second) {
    size_t used = strlen(log_text);
    snprintf(log_text + used, sizeof log_text - used, "%s%s%s%s%s\n", name, first ? " " : "", first ? first : "",
             second ? " " : "", second ? second : "");
}

static HRESULT fails(const char *name) {
    if (strcmp(name, failing) == 0 && --countdown == 0) return failure;
    return 0;
}

// What is in the image ---------------------------------------------------------------------------------------------

static int find(const char *path) {
    for (int at = 0; at < path_count; at++)
        if (paths[at] && strcasecmp(paths[at], path) == 0) return at;
    return -1;
}

static void add(const char *path, const char *target) {
    int at = find(path);
    if (at < 0) at = path_count < PATHS ? path_count++ : PATHS - 1;
    paths[at] = strdup(path);
    targets[at] = target ? strdup(target) : NULL;
}

static int parent_is_there(const char *path) {
    const char *slash = strrchr(path, '\\');
    if (!slash) return 1;
    char parent[2048];
    snprintf(parent, sizeof parent, "%.*s", (int)(slash - path), path);
    return find(parent) >= 0;
}

static HRESULT usable(uint64_t image) {
    if (image != 7 || !image_open) return INVALID_HANDLE;
    return committed ? ACCESS_DENIED : 0;
}

// What the tests call ----------------------------------------------------------------------------------------------

EXPORT const char *stub_log(void) { return log_text; }
EXPORT const char *stub_details(void) { return details; }

EXPORT void stub_reset(void) {
    log_text[0] = details[0] = failing[0] = 0;
    path_count = image_open = stream_open = committed = 0;
}

// The `nth` call of a function fails with a result.
EXPORT void stub_fail(const char *name, int nth, HRESULT with) {
    snprintf(failing, sizeof failing, "%s", name);
    countdown = nth;
    failure = with;
}

// A file that a parent's image has, which forks have too.
EXPORT void stub_parent(const char *path) { add(path, NULL); }

// The calls --------------------------------------------------------------------------------------------------------

#define BEGIN(name, first, second)                  \
    note(name, first, second);                      \
    {                                               \
        HRESULT asked = fails(name);                \
        if (asked) return asked;                    \
    }

#define OPEN_IMAGE(image)                           \
    {                                               \
        HRESULT closed = usable(image);             \
        if (closed) return closed;                  \
    }

static void touch(const char *directory, const char *name) {
    char path[4096];
    snprintf(path, sizeof path, "%s%s%s", directory, name ? "/" : "", name ? name : "");
    FILE *file = fopen(path, "ab");
    if (file) fclose(file);
}

EXPORT HRESULT CimCreateImage(const uint16_t *place, const uint16_t *existing, const uint16_t *new, uint64_t *image) {
    char names[4096];
    snprintf(names, sizeof names, "%s %s", text(existing), text(new));
    BEGIN("CimCreateImage", text(place), names)
    if (image_open) return SHARING_VIOLATION;
    touch(text(place), text(new ? new : existing));
    touch(text(place), "region_00000000-0000-4000-8000-000000000000_0");
    touch(text(place), "objectid_00000000-0000-4000-8000-000000000000_0");
    if (!existing) path_count = 0;
    image_open = 1;
    committed = 0;
    *image = 7;
    return 0;
}

EXPORT HRESULT CimCreateImage2(const uint16_t *place, uint32_t flags, const uint16_t *existing, const uint16_t *new,
                               uint64_t *image) {
    char rest[4096];
    snprintf(rest, sizeof rest, "0x%x %s %s", flags, text(existing), text(new));
    BEGIN("CimCreateImage2", text(place), rest)
    if (image_open) return SHARING_VIOLATION;
    touch(text(place), NULL);
    if (!existing) path_count = 0;
    image_open = 1;
    committed = 0;
    *image = 7;
    return 0;
}

EXPORT HRESULT CimCreateFile(uint64_t image, const uint16_t *path, const Metadata *metadata, uint64_t *stream) {
    static char parts[3][4100];
    char size[32];
    snprintf(size, sizeof size, "%lld", (long long)metadata->size);
    hex(parts[0], metadata->security, metadata->security_size > 2000 ? 2000 : metadata->security_size);
    hex(parts[1], metadata->reparse, metadata->reparse_size > 2000 ? 2000 : metadata->reparse_size);
    hex(parts[2], metadata->extended, metadata->extended_size > 2000 ? 2000 : metadata->extended_size);
    snprintf(details, sizeof details, "%x %lld %lld %lld %lld sd:%s reparse:%s ea:%s", metadata->attributes,
             (long long)metadata->creation, (long long)metadata->write, (long long)metadata->change,
             (long long)metadata->access, parts[0], parts[1], parts[2]);
    BEGIN("CimCreateFile", text(path), size)
    OPEN_IMAGE(image)
    if (stream_open) return SHARING_VIOLATION;
    if (metadata->attributes & 0x10 && metadata->size) return INVALID_PARAMETER;
    if (!metadata->security_size) return INVALID_PARAMETER;
    if (!parent_is_there(text(path))) return PATH_NOT_FOUND;
    add(text(path), NULL);
    stream_open = 1;
    stream_left = (uint64_t)metadata->size;
    *stream = 9;
    return 0;
}

EXPORT HRESULT CimCreateAlternateStream(uint64_t image, const uint16_t *path, uint64_t size, uint64_t *stream) {
    char owner[2048], number[32];
    snprintf(owner, sizeof owner, "%s", text(path));
    snprintf(number, sizeof number, "%llu", (unsigned long long)size);
    BEGIN("CimCreateAlternateStream", owner, number)
    OPEN_IMAGE(image)
    if (stream_open) return SHARING_VIOLATION;
    char *colon = strchr(owner, ':');
    if (!colon) return INVALID_PARAMETER;
    *colon = 0;
    if (find(owner) < 0) return NOT_FOUND;
    stream_open = 1;
    stream_left = size;
    *stream = 9;
    return 0;
}

EXPORT HRESULT CimWriteStream(uint64_t stream, const uint8_t *bytes, uint32_t size) {
    char number[64];
    int used = snprintf(number, sizeof number, "%u", size);
    if (size <= 16) {
        number[used++] = ' ';
        hex(number + used, bytes, size);
    }
    BEGIN("CimWriteStream", number, NULL)
    if (stream != 9 || !stream_open) return INVALID_HANDLE;
    if (size > stream_left) return INVALID_PARAMETER;
    stream_left -= size;
    return 0;
}

EXPORT void CimCloseStream(uint64_t stream) {
    note("CimCloseStream", stream == 9 && stream_open ? NULL : "of nothing", NULL);
    stream_open = 0;
}

EXPORT HRESULT CimCreateHardLink(uint64_t image, const uint16_t *path, const uint16_t *target) {
    BEGIN("CimCreateHardLink", text(path), text(target))
    OPEN_IMAGE(image)
    if (find(text(target)) < 0) return NOT_FOUND;
    if (find(text(path)) >= 0) return ALREADY_EXISTS;
    if (!parent_is_there(text(path))) return PATH_NOT_FOUND;
    add(text(path), text(target));
    return 0;
}

EXPORT HRESULT CimCreateMergeLink(uint64_t image, const uint16_t *path, const uint16_t *target) {
    BEGIN("CimCreateMergeLink", text(path), text(target))
    OPEN_IMAGE(image)
    if (find(text(target)) >= 0) return ALREADY_EXISTS;
    if (!parent_is_there(text(path))) return PATH_NOT_FOUND;
    add(text(path), text(target));
    return 0;
}

EXPORT HRESULT CimDeletePath(uint64_t image, const uint16_t *path) {
    BEGIN("CimDeletePath", text(path), NULL)
    OPEN_IMAGE(image)
    int at = find(text(path));
    if (at < 0) return NOT_FOUND;
    paths[at] = NULL;
    return 0;
}

EXPORT HRESULT CimTombstoneFile(uint64_t image, const uint16_t *path) {
    BEGIN("CimTombstoneFile", text(path), NULL)
    OPEN_IMAGE(image)
    return find(text(path)) >= 0 ? ALREADY_EXISTS : 0;
}

EXPORT HRESULT CimAddFsToMergedImage(uint64_t image, const uint16_t *path) {
    BEGIN("CimAddFsToMergedImage", text(path), NULL)
    return usable(image);
}

EXPORT HRESULT CimAddFsToMergedImage2(uint64_t image, const uint16_t *path, uint32_t flags) {
    char number[32];
    snprintf(number, sizeof number, "0x%x", flags);
    BEGIN("CimAddFsToMergedImage2", text(path), number)
    return usable(image);
}

EXPORT HRESULT CimCommitImage(uint64_t image) {
    BEGIN("CimCommitImage", NULL, NULL)
    OPEN_IMAGE(image)
    if (stream_open) return SHARING_VIOLATION;
    committed = 1;
    return 0;
}

EXPORT void CimCloseImage(uint64_t image) {
    note("CimCloseImage", image == 7 && image_open && !stream_open ? NULL : "of what is not open", NULL);
    image_open = 0;
}

EXPORT HRESULT CimSealImage(const uint16_t *block, uint64_t *size, uint64_t *header, uint8_t *hash) {
    BEGIN("CimSealImage", text(block), NULL)
    if (image_open || *size < 32) return SHARING_VIOLATION;
    for (int at = 0; at < 32; at++) hash[at] = (uint8_t)at;
    *size = 32;
    *header = 4096;
    return 0;
}

EXPORT HRESULT CimGetVerificationInformation(const uint16_t *block, uint32_t *sealed, uint64_t *size,
                                             uint64_t *signature, uint64_t *header, uint8_t *hash, uint8_t *signed_by) {
    BEGIN("CimGetVerificationInformation", text(block), NULL)
    if (signed_by) return INVALID_PARAMETER;
    for (int at = 0; at < 32; at++) hash[at] = (uint8_t)at;
    *sealed = 1;
    *size = 32;
    *signature = 0;
    *header = 4096;
    return 0;
}

static const char *volume(const Guid *guid) {
    static char kept[64];
    hex(kept, guid->bytes, 16);
    return kept;
}

static void images(char *out, size_t room, uint32_t count, const ImagePath *each) {
    out[0] = 0;
    for (uint32_t at = 0; at < count; at++) {
        size_t used = strlen(out);
        snprintf(out + used, room - used, "%s%s|%s", at ? " " : "", text(each[at].directory), text(each[at].name));
    }
}

EXPORT HRESULT CimMountImage(const uint16_t *place, const uint16_t *name, uint32_t flags, const Guid *guid) {
    char rest[4096];
    snprintf(rest, sizeof rest, "%s 0x%x %s", text(name), flags, volume(guid));
    BEGIN("CimMountImage", text(place), rest)
    return 0;
}

EXPORT HRESULT CimMergeMountImage(uint32_t count, const ImagePath *each, uint32_t flags, const Guid *guid) {
    char list[8192], rest[128];
    images(list, sizeof list, count, each);
    snprintf(rest, sizeof rest, "0x%x %s", flags, volume(guid));
    BEGIN("CimMergeMountImage", list, rest)
    return 0;
}

EXPORT HRESULT CimMountVerifiedImage(const uint16_t *place, const uint16_t *name, uint32_t flags, const Guid *guid,
                                     uint16_t size, const uint8_t *hash) {
    char rest[4096], root[256];
    hex(root, hash, size > 64 ? 64 : size);
    snprintf(rest, sizeof rest, "%s 0x%x %s %s", text(name), flags, volume(guid), root);
    BEGIN("CimMountVerifiedImage", text(place), rest)
    return 0;
}

EXPORT HRESULT CimMergeMountVerifiedImage(uint32_t count, const ImagePath *each, uint32_t flags, const Guid *guid,
                                          uint16_t size, const uint8_t *hash) {
    char list[8192], rest[512], root[256];
    images(list, sizeof list, count, each);
    hex(root, hash, size > 64 ? 64 : size);
    snprintf(rest, sizeof rest, "0x%x %s %s", flags, volume(guid), root);
    BEGIN("CimMergeMountVerifiedImage", list, rest)
    return 0;
}

EXPORT HRESULT CimDismountImage(const Guid *guid) {
    BEGIN("CimDismountImage", volume(guid), NULL)
    return 0;
}
