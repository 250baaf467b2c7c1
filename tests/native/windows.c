// SPDX-License-Identifier: Apache-2.0
// Windows' calls as far as Lamella makes them, over a volume in memory: every call is written down with its arguments,
// any can be made to fail, and what is handed out (handles, contexts, memory) is counted until it is given back.
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint16_t W;
typedef uint64_t HANDLE;
#define INVALID 0xFFFFFFFFFFFFFFFFull
#define EXPORT __attribute__((visibility("default")))

static pthread_mutex_t lock;
static __thread uint32_t last_error;
static char *log_text;
static size_t log_size, log_room;
static char fail_name[64];
static long fail_after = -1, calls;
static uint32_t fail_code;
static char failed[64];
static long handles_open, contexts_open, memory_out;

static void say(const char *format, ...) {
    char line[4096];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(line, sizeof line - 1, format, arguments);
    va_end(arguments);
    if (length > (int)sizeof line - 2) length = sizeof line - 2;
    line[length++] = '\n';
    if (log_size + length + 1 > log_room) log_text = realloc(log_text, log_room = 2 * log_room + length + 4096);
    memcpy(log_text + log_size, line, length);
    log_size += length;
    log_text[log_size] = 0;
}

// Whether this call is the one that a test wants to fail.
static uint32_t fails(const char *name) {
    if (fail_after < 0 || (fail_name[0] && strcmp(fail_name, name))) return 0;
    if (calls++ != fail_after) return 0;
    fail_after = -1;
    snprintf(failed, sizeof failed, "%s", name);
    return fail_code;
}

#define ENTER pthread_mutex_lock(&lock)
#define LEAVE(value) do { __typeof__(value) result_ = (value); pthread_mutex_unlock(&lock); return result_; } while (0)
#define LEAVE_WITH(code, value) do { last_error = (code); LEAVE(value); } while (0)
#define HRESULT_OF(code) ((int32_t)(0x80070000u | (code)))

static size_t length_of(const W *text) { size_t n = 0; while (text[n]) n++; return n; }

static const char *utf8(const W *text, size_t count, char *out, size_t room) {
    size_t at = 0;
    for (size_t i = 0; i < count && at + 4 < room; i++) {
        uint32_t c = text[i];
        if (c >= 0xD800 && c < 0xDC00 && i + 1 < count) c = 0x10000 + ((c - 0xD800) << 10) + (text[++i] - 0xDC00u);
        if (c < 0x80) out[at++] = (char)c;
        else if (c < 0x800) { out[at++] = (char)(0xC0 | c >> 6); out[at++] = (char)(0x80 | (c & 63)); }
        else if (c < 0x10000) {
            out[at++] = (char)(0xE0 | c >> 12); out[at++] = (char)(0x80 | (c >> 6 & 63)); out[at++] = (char)(0x80 | (c & 63));
        } else {
            out[at++] = (char)(0xF0 | c >> 18); out[at++] = (char)(0x80 | (c >> 12 & 63));
            out[at++] = (char)(0x80 | (c >> 6 & 63)); out[at++] = (char)(0x80 | (c & 63));
        }
    }
    out[at] = 0;
    return out;
}

#define TEXTS 4
static const char *text(const W *wide) {
    static char rooms[TEXTS][2048];
    static int next;
    if (!wide) return "(null)";
    char *room = rooms[next++ % TEXTS];
    return utf8(wide, length_of(wide), room, sizeof rooms[0]);
}

// What tests ask of the stub itself.

EXPORT uint32_t stub_last_error(void) { return last_error; }
EXPORT const char *stub_log(void) { return log_text ? log_text : ""; }
EXPORT void stub_clear_log(void) { ENTER; log_size = 0; if (log_text) log_text[0] = 0; pthread_mutex_unlock(&lock); }
EXPORT const char *stub_failed(void) { return failed; }
EXPORT long stub_handles(void) { return handles_open; }
EXPORT long stub_contexts(void) { return contexts_open; }
EXPORT long stub_memory(void) { return memory_out; }
EXPORT void stub_fail(const char *name, long after, uint32_t code) {
    ENTER;
    snprintf(fail_name, sizeof fail_name, "%s", name);
    fail_after = after;
    fail_code = code;
    calls = 0;
    if (after >= 0) failed[0] = 0;
    pthread_mutex_unlock(&lock);
}

// The volume.

typedef struct { uint8_t *bytes; size_t size; } Blob;
typedef struct Node Node;
typedef struct { W *name; size_t units; Node *node; } Item;
typedef struct Stream { W *name; size_t units; Blob data; struct Stream *next; } Stream;
typedef struct { int64_t offset, length; } Range;
struct Node {
    uint64_t id;
    uint32_t attributes, links, ea_size;
    int64_t times[4];
    Blob data, descriptor, extended, reparse;
    Stream *streams;
    Range *ranges;
    size_t range_count;
    Item *items;
    size_t count;
};
enum { READONLY = 1, DIRECTORY = 0x10, ARCHIVE = 0x20, SPARSE = 0x200, REPARSE = 0x400, FOLLOWS = 0x4EF0 & ~0x20 };
enum { CREATION, ACCESS, WRITE, CHANGE };

static Node *root;
static uint64_t next_id;
static int64_t now;

static Node *new_node(uint32_t attributes) {
    Node *node = calloc(1, sizeof *node);
    node->id = ++next_id;
    node->attributes = attributes;
    now += 10000000;
    for (int i = 0; i < 4; i++) node->times[i] = now;
    return node;
}

static void free_node(Node *node) {
    if (--node->links) return;
    for (size_t i = 0; i < node->count; i++) { free(node->items[i].name); free_node(node->items[i].node); }
    for (Stream *s = node->streams; s;) { Stream *next = s->next; free(s->name); free(s->data.bytes); free(s); s = next; }
    free(node->items); free(node->ranges);
    free(node->data.bytes); free(node->descriptor.bytes); free(node->extended.bytes); free(node->reparse.bytes);
    free(node);
}

static W upper(W c) { return c < 128 ? (c >= 'a' && c <= 'z' ? c - 32 : c) : (c >= 0xE0 && c <= 0xFE && c != 0xF7 ? c - 32 : c); }

static long find(Node *node, const W *name, size_t units) {
    for (size_t i = 0; i < node->count; i++) {
        Item *item = &node->items[i];
        if (item->units != units) continue;
        size_t at = 0;
        while (at < units && upper(item->name[at]) == upper(name[at])) at++;
        if (at == units) return (long)i;
    }
    return -1;
}

static void put(Blob *blob, size_t at, const uint8_t *bytes, size_t count) {
    if (at + count > blob->size) {
        blob->bytes = realloc(blob->bytes, at + count + 1);
        memset(blob->bytes + blob->size, 0, at + count - blob->size);
        blob->size = at + count;
    }
    if (count) memcpy(blob->bytes + at, bytes, count);
}

static void cut(Blob *blob) { free(blob->bytes); blob->bytes = NULL; blob->size = 0; }

static void add(Node *node, const W *name, size_t units, Node *inner) {
    node->items = realloc(node->items, (node->count + 1) * sizeof(Item));
    W *copy = malloc(2 * units + 2);
    memcpy(copy, name, 2 * units);
    node->items[node->count++] = (Item){copy, units, inner};
    inner->links++;
    node->times[WRITE] = node->times[CHANGE] = (now += 10000000);
}

typedef struct { Node *above; const W *name; size_t units; Node *node; const W *stream; size_t stream_units; } Place;

// Walk `count` units of a path from `from`; 0, or the NTSTATUS of what is in the way.
static uint32_t walk(Node *from, const W *path, size_t count, int follow_last, Place *place) {
    *place = (Place){NULL, NULL, 0, from, NULL, 0};
    size_t at = 0;
    while (at < count) {
        size_t end = at;
        while (end < count && path[end] != '\\') end++;
        size_t stop = at;
        while (stop < end && path[stop] != ':') stop++;
        if (stop == at || (end < count && stop < end)) return 0xC0000033;
        if (!place->node) return 0xC000003A;
        if (place->node != from && place->node->attributes & REPARSE) return 0xC000050B;
        if (!(place->node->attributes & DIRECTORY)) return 0xC000003A;
        long found = find(place->node, path + at, stop - at);
        *place = (Place){place->node, path + at, stop - at, found < 0 ? NULL : place->node->items[found].node, NULL, 0};
        if (stop < end) {
            place->stream = path + stop + 1;
            place->stream_units = end - stop - 1;
            size_t n = place->stream_units;
            static const char suffix[] = ":$DATA";
            int typed = n > 6;
            for (int i = 0; typed && i < 6; i++) typed = place->stream[n - 6 + i] == (W)suffix[i];
            if (typed) place->stream_units -= 6;
        }
        at = end + 1;
    }
    if (follow_last && place->node && place->node->attributes & REPARSE && place->node != from) return 0xC000050B;
    return 0;
}

// The part of a Win32 path after its drive.
static const W *on_drive(const W *path) {
    if (path[0] == '\\' && path[1] == '\\' && path[2] == '?' && path[3] == '\\') path += 4; else return NULL;
    if (!path[0] || path[1] != ':' || path[2] != '\\') return NULL;
    return path + 3;
}

static uint32_t win32_of(uint32_t status) {
    switch (status) {
        case 0: return 0;
        case 0xC0000022: return 5;
        case 0xC0000033: return 123;
        case 0xC0000034: return 2;
        case 0xC0000035: return 183;
        case 0xC000003A: return 3;
        case 0xC0000043: return 32;
        case 0xC0000061: return 1314;
        case 0xC000009A: return 1450;
        case 0xC00000BA: return 5;
        case 0xC0000101: return 145;
        case 0xC0000103: return 267;
        case 0xC0000121: return 5;
        case 0xC000050B: return 4395;
        default: return 317;
    }
}
static uint32_t status_of(uint32_t code) { return code == 1450 ? 0xC000009A : 0xC0000022; }

// Handles.

enum { FREE, FILE_HANDLE, TOKEN, HIVE, KEY, DISK };
typedef struct {
    int kind;
    Node *node;
    Stream *stream;
    int64_t position;
    size_t listed;
    uint32_t access;
    int timed, thread_token;
    Node *above;
    W *name;
    size_t units;
    int doomed;
} Open;
static Open *opens;
static size_t open_count;

static HANDLE hand_out(Open value) {
    size_t i = 0;
    while (i < open_count && opens[i].kind != FREE) i++;
    if (i == open_count) opens = realloc(opens, ++open_count * sizeof(Open));
    opens[i] = value;
    handles_open++;
    return 0x100 + 4 * i;
}
static Open *opened(HANDLE handle, int kind) {
    if (handle < 0x100 || handle % 4) return NULL;
    size_t i = (handle - 0x100) / 4;
    return i < open_count && opens[i].kind == kind ? &opens[i] : NULL;
}
static int take_back(HANDLE handle, int kind) {
    Open *open = opened(handle, kind);
    if (!open) return 0;
    if (open->doomed && open->above) {
        long at = find(open->above, open->name, open->units);
        if (at >= 0) {
            free(open->above->items[at].name);
            Node *node = open->above->items[at].node;
            memmove(&open->above->items[at], &open->above->items[at + 1], (--open->above->count - at) * sizeof(Item));
            open->above->times[WRITE] = (now += 10000000);
            free_node(node);
        }
    }
    if (open->node) free_node(open->node);
    free(open->name);
    memset(open, 0, sizeof *open);
    handles_open--;
    return 1;
}

// Privileges: the account's, the process's, and those of a thread that impersonates.

static const char *PRIVILEGES[] = {"SeSecurityPrivilege", "SeBackupPrivilege", "SeRestorePrivilege", "SeCreateTokenPrivilege"};
enum { SECURITY_BIT = 1, BACKUP_BIT = 2, RESTORE_BIT = 4 };
static uint32_t account = 7, process;
static __thread int impersonates;
static __thread uint32_t of_thread;

EXPORT void stub_account(uint32_t held, uint32_t enabled) { account = held; process = enabled; }
EXPORT uint32_t stub_enabled(void) { return impersonates ? of_thread : process; }
EXPORT uint32_t stub_process_enabled(void) { return process; }
EXPORT int stub_impersonates(void) { return impersonates; }

static int effective(uint32_t bits) { return ((impersonates ? of_thread : process) & bits) == bits; }

EXPORT HANDLE GetCurrentProcess(void) { return INVALID; }
EXPORT HANDLE GetCurrentThread(void) { return INVALID - 1; }

EXPORT int32_t OpenProcessToken(HANDLE process_handle, uint32_t access, HANDLE *token) {
    ENTER;
    say("OpenProcessToken process=%lld access=0x%x", (long long)process_handle, access);
    uint32_t code = fails("OpenProcessToken");
    if (code) LEAVE_WITH(code, 0);
    *token = hand_out((Open){.kind = TOKEN});
    LEAVE(1);
}
EXPORT int32_t OpenThreadToken(HANDLE thread, uint32_t access, int32_t as_self, HANDLE *token) {
    ENTER;
    say("OpenThreadToken thread=%lld access=0x%x as_self=%d", (long long)thread, access, as_self);
    uint32_t code = fails("OpenThreadToken");
    if (code) LEAVE_WITH(code, 0);
    if (!impersonates) LEAVE_WITH(1008, 0);
    *token = hand_out((Open){.kind = TOKEN, .thread_token = 1});
    LEAVE(1);
}
EXPORT int32_t ImpersonateSelf(uint32_t level) {
    ENTER;
    say("ImpersonateSelf level=%u", level);
    uint32_t code = fails("ImpersonateSelf");
    if (code) LEAVE_WITH(code, 0);
    impersonates = 1;
    of_thread = process;
    LEAVE(1);
}
EXPORT int32_t RevertToSelf(void) {
    ENTER;
    say("RevertToSelf");
    impersonates = 0;
    LEAVE(1);
}
EXPORT int32_t LookupPrivilegeValueW(const W *system, const W *name, uint32_t *luid) {
    ENTER;
    say("LookupPrivilegeValueW system=%s name=%s", text(system), text(name));
    uint32_t code = fails("LookupPrivilegeValueW");
    if (code) LEAVE_WITH(code, 0);
    for (uint32_t i = 0; i < 4; i++)
        if (!strcmp(PRIVILEGES[i], text(name))) { luid[0] = 8 + i; luid[1] = 0; LEAVE(1); }
    LEAVE_WITH(1313, 0);
}
EXPORT int32_t AdjustTokenPrivileges(HANDLE token, int32_t none, const uint32_t *wanted, uint32_t size, uint32_t *before, uint32_t *needed) {
    ENTER;
    say("AdjustTokenPrivileges none=%d count=%u luid=%u:%u attributes=%u room=%u previous=%s", none, wanted[0], wanted[2],
        wanted[1], wanted[3], size, before ? "yes" : "no");
    uint32_t code = fails("AdjustTokenPrivileges");
    if (code) LEAVE_WITH(code, 0);
    Open *open = opened(token, TOKEN);
    if (!open) LEAVE_WITH(6, 0);
    if (before) before[0] = 0;
    if (needed) *needed = 4;
    uint32_t bit = 1u << (wanted[1] - 8);
    if (!(account & bit)) LEAVE_WITH(1300, 1);
    uint32_t *state = open->thread_token ? &of_thread : &process;
    int enable = wanted[3] == 2;
    if (!!(*state & bit) != enable) {
        if (before && size >= 16) { before[0] = 1; before[1] = wanted[1]; before[2] = 0; before[3] = enable ? 0 : 2; *needed = 16; }
        *state = enable ? *state | bit : *state & ~bit;
    }
    LEAVE_WITH(0, 1);
}
EXPORT int32_t CloseHandle(HANDLE handle) {
    ENTER;
    Open *any = handle >= 0x100 && (handle - 0x100) / 4 < open_count ? &opens[(handle - 0x100) / 4] : NULL;
    say("CloseHandle %s", !any || any->kind == FREE ? "unknown" : any->kind == TOKEN ? "token" : any->kind == DISK ? "disk" : "file");
    if (!any || any->kind == FREE) LEAVE_WITH(6, 0);
    LEAVE(take_back(handle, any->kind));
}

// Files.

static uint32_t open_at(Node *from, const W *path, size_t count, uint32_t access, int create, uint32_t options, int strict, HANDLE *handle) {
    Place place;
    if (access & 0x01000000 && !effective(SECURITY_BIT)) return 0xC0000061;
    uint32_t status = walk(from, path, count, strict && !(options & 0x200000), &place);
    if (status) return status;
    if (place.stream) {
        if (!place.node) return 0xC0000034;
        Stream *stream = place.node->streams;
        while (stream && (stream->units != place.stream_units || memcmp(stream->name, place.stream, 2 * stream->units))) stream = stream->next;
        if (!stream || create) return 0xC0000034;
        place.node->links++;
        *handle = hand_out((Open){.kind = FILE_HANDLE, .node = place.node, .stream = stream, .access = access});
        return 0;
    }
    if (create && place.node) return 0xC0000035;
    if (!place.node) {
        if (!create) return 0xC0000034;
        if (!place.above) return 0xC0000033;
        place.node = new_node(options & 1 ? DIRECTORY : ARCHIVE);
        add(place.above, place.name, place.units, place.node);
    } else if (options & 1 && !(place.node->attributes & DIRECTORY)) return 0xC0000103;
    place.node->links++;
    W *name = NULL;
    if (place.above) { name = malloc(2 * place.units + 2); memcpy(name, place.name, 2 * place.units); }
    *handle = hand_out((Open){.kind = FILE_HANDLE, .node = place.node, .access = access, .above = place.above, .name = name, .units = place.units});
    return 0;
}

EXPORT HANDLE CreateFileW(const W *path, uint32_t access, uint32_t share, void *security, uint32_t disposition, uint32_t flags, HANDLE template) {
    ENTER;
    say("CreateFileW path=%s access=0x%x share=%u security=%s disposition=%u flags=0x%x template=%llu", text(path), access,
        share, security ? "yes" : "no", disposition, flags, (unsigned long long)template);
    uint32_t code = fails("CreateFileW");
    if (code) LEAVE_WITH(code, INVALID);
    const W *inner = on_drive(path);
    if (!inner) LEAVE_WITH(123, INVALID);
    HANDLE handle = INVALID;
    uint32_t status = open_at(root, inner, length_of(inner), access, disposition == 1, flags & 0x200000, 0, &handle);
    if (status) LEAVE_WITH(win32_of(status), INVALID);
    LEAVE(handle);
}
EXPORT int32_t CreateDirectoryW(const W *path, void *security) {
    ENTER;
    say("CreateDirectoryW path=%s security=%s", text(path), security ? "yes" : "no");
    uint32_t code = fails("CreateDirectoryW");
    if (code) LEAVE_WITH(code, 0);
    const W *inner = on_drive(path);
    Place place;
    if (!inner) LEAVE_WITH(123, 0);
    uint32_t status = walk(root, inner, length_of(inner), 0, &place);
    if (status) LEAVE_WITH(win32_of(status), 0);
    if (place.node || !place.above) LEAVE_WITH(183, 0);
    add(place.above, place.name, place.units, new_node(DIRECTORY));
    LEAVE(1);
}

typedef struct { uint16_t length, room; uint32_t pad; W *buffer; } Unicode;
typedef struct { uint32_t length, pad; HANDLE root; Unicode *name; uint32_t attributes, pad2; void *descriptor, *quality; } Attributes;

EXPORT int32_t NtCreateFile(HANDLE *handle, uint32_t access, Attributes *about, uint64_t *done, void *allocation, uint32_t attributes, uint32_t share,
                            uint32_t disposition, uint32_t options, void *extended, uint32_t extended_size) {
    ENTER;
    char name[2048];
    utf8(about->name->buffer, about->name->length / 2, name, sizeof name);
    say("NtCreateFile name=%s bytes=%u:%u size=%u access=0x%x flags=0x%x allocation=%s attributes=%u share=%u disposition=%u options=0x%x extended=%s:%u", name,
        about->name->length, about->name->room, about->length, access, about->attributes, allocation ? "yes" : "no", attributes, share, disposition, options, extended ? "yes" : "no", extended_size);
    done[0] = done[1] = 0;
    uint32_t code = fails("NtCreateFile");
    if (code) LEAVE((int32_t)status_of(code));
    Open *open = opened(about->root, FILE_HANDLE);
    if (!open) LEAVE((int32_t)0xC0000008);
    size_t units = about->name->length / 2;
    if (units && about->name->buffer[0] == '\\') LEAVE((int32_t)0xC0000033);
    LEAVE((int32_t)open_at(open->node, about->name->buffer, units, access, disposition == 2, options, about->attributes & 0x1000, handle));
}
EXPORT uint32_t RtlNtStatusToDosError(uint32_t status) { return win32_of(status); }

EXPORT int32_t NtSetInformationFile(HANDLE handle, uint64_t *done, uint8_t *info, uint32_t size, uint32_t class) {
    ENTER;
    done[0] = done[1] = 0;
    uint32_t code;
    Open *open = opened(handle, FILE_HANDLE);
    if (class == 11) {
        uint32_t bytes;
        HANDLE to;
        char name[2048];
        memcpy(&to, info + 8, 8);
        memcpy(&bytes, info + 16, 4);
        utf8((W *)(info + 20), bytes / 2, name, sizeof name);
        say("NtSetInformationFile link name=%s replace=%u size=%u", name, info[0], size);
        if ((code = fails("NtSetInformationFile"))) LEAVE((int32_t)status_of(code));
        Open *target = opened(to, FILE_HANDLE);
        Place place;
        if (!open || !target) LEAVE((int32_t)0xC0000008);
        if (open->node->attributes & DIRECTORY) LEAVE((int32_t)0xC00000BA);
        uint32_t status = walk(target->node, (W *)(info + 20), bytes / 2, 0, &place);
        if (status) LEAVE((int32_t)status);
        if (place.node) LEAVE((int32_t)0xC0000035);
        add(place.above, place.name, place.units, open->node);
        LEAVE(0);
    }
    if (class == 64) {
        uint32_t flags;
        memcpy(&flags, info, 4);
        say("NtSetInformationFile disposition flags=%u size=%u", flags, size);
        if ((code = fails("NtSetInformationFile"))) LEAVE((int32_t)status_of(code));
        if (!open) LEAVE((int32_t)0xC0000008);
        if (!(open->access & 0x10000)) LEAVE((int32_t)0xC0000022);
        if (open->node->attributes & READONLY) LEAVE((int32_t)0xC0000121);
        if (open->node->count) LEAVE((int32_t)0xC0000101);
        open->doomed = flags & 1;
        LEAVE(0);
    }
    say("NtSetInformationFile class=%u", class);
    LEAVE((int32_t)0xC0000003);
}

EXPORT int32_t GetFileInformationByHandleEx(HANDLE handle, uint32_t class, uint8_t *info, uint32_t size) {
    ENTER;
    say("GetFileInformationByHandleEx class=%u size=%u", class, size);
    uint32_t code = fails("GetFileInformationByHandleEx");
    if (code) LEAVE_WITH(code, 0);
    Open *open = opened(handle, FILE_HANDLE);
    if (!open) LEAVE_WITH(6, 0);
    Node *node = open->node;
    if (class == 0 && size == 40) {
        memcpy(info, node->times, 32);
        memcpy(info + 32, &node->attributes, 4);
    } else if (class == 1 && size == 24) {
        int64_t bytes = (int64_t)(open->stream ? open->stream->data.size : node->data.size), zero = 0;
        uint32_t links = 0;  // names, without the handles that are open
        links = node->links;
        for (size_t i = 0; i < open_count; i++) if (opens[i].kind == FILE_HANDLE && opens[i].node == node) links--;
        memcpy(info, &bytes, 8); memcpy(info, &zero, 0); memcpy(info + 8, &bytes, 8); memcpy(info + 16, &links, 4);
        info[20] = (uint8_t)open->doomed;
        info[21] = !!(node->attributes & DIRECTORY);
        info[22] = info[23] = 0;
    } else if (class == 18 && size == 24) {
        uint64_t volume = 7, high = 0;
        memcpy(info, &volume, 8); memcpy(info + 8, &node->id, 8); memcpy(info + 16, &high, 8);
    } else if (class == 14 || class == 15) {
        if (class == 15) open->listed = 0;
        if (open->listed >= node->count) LEAVE_WITH(18, 0);
        uint32_t at = 0, last = 0;
        int any = 0;
        while (open->listed < node->count) {
            Item *item = &node->items[open->listed];
            uint32_t need = 68 + 2 * (uint32_t)item->units;
            if (at + need > size) break;
            memset(info + at, 0, 68);
            if (any) { uint32_t step = at - last; memcpy(info + last, &step, 4); }
            int64_t bytes = (int64_t)item->node->data.size;
            uint32_t name_bytes = 2 * (uint32_t)item->units;
            memcpy(info + at + 8, item->node->times, 32);
            memcpy(info + at + 40, &bytes, 8); memcpy(info + at + 48, &bytes, 8);
            memcpy(info + at + 56, &item->node->attributes, 4);
            memcpy(info + at + 60, &name_bytes, 4);
            memcpy(info + at + 68, item->name, name_bytes);
            last = at;
            at += (need + 7) & ~7u;
            any = 1;
            open->listed++;
        }
        if (!any) LEAVE_WITH(234, 0);
    } else LEAVE_WITH(87, 0);
    LEAVE(1);
}
EXPORT int32_t SetFileInformationByHandle(HANDLE handle, uint32_t class, const uint8_t *info, uint32_t size) {
    ENTER;
    int64_t times[4];
    uint32_t attributes;
    memcpy(times, info, 32);
    memcpy(&attributes, info + 32, 4);
    say("SetFileInformationByHandle class=%u size=%u times=%lld,%lld,%lld,%lld attributes=0x%x", class, size, (long long)times[0],
        (long long)times[1], (long long)times[2], (long long)times[3], attributes);
    uint32_t code = fails("SetFileInformationByHandle");
    if (code) LEAVE_WITH(code, 0);
    Open *open = opened(handle, FILE_HANDLE);
    if (!open) LEAVE_WITH(6, 0);
    if (class || size != 40) LEAVE_WITH(87, 0);
    if (!(open->access & 0x40000100)) LEAVE_WITH(5, 0);
    for (int i = 0; i < 4; i++) if (times[i] > 0) open->node->times[i] = times[i];
    if (times[WRITE]) open->timed = 1;
    if (attributes) {
        const uint32_t kept = DIRECTORY | SPARSE | REPARSE | 0x800 | 0x4000;
        open->node->attributes = (open->node->attributes & kept) | (attributes & ~kept & ~0x80u);
    }
    LEAVE(1);
}

static void wrote(Open *open) { if (!open->timed) open->node->times[WRITE] = (now += 10000000); }

EXPORT int32_t ReadFile(HANDLE handle, uint8_t *buffer, uint32_t size, uint32_t *done, void *overlapped) {
    ENTER;
    (void)overlapped;
    uint32_t code = fails("ReadFile");
    if (code) LEAVE_WITH(code, 0);
    Open *open = opened(handle, FILE_HANDLE);
    if (!open) LEAVE_WITH(6, 0);
    Blob *data = open->stream ? &open->stream->data : &open->node->data;
    int64_t left = (int64_t)data->size - open->position;
    *done = left <= 0 ? 0 : left < size ? (uint32_t)left : size;
    if (*done) memcpy(buffer, data->bytes + open->position, *done);
    open->position += *done;
    LEAVE(1);
}
EXPORT int32_t WriteFile(HANDLE handle, const uint8_t *buffer, uint32_t size, uint32_t *done, void *overlapped) {
    ENTER;
    (void)overlapped;
    uint32_t code = fails("WriteFile");
    if (code) LEAVE_WITH(code, 0);
    Open *open = opened(handle, FILE_HANDLE);
    if (!open || !(open->access & 0x40000000)) LEAVE_WITH(open ? 5 : 6, 0);
    if (size > 100000) size = 100000;  // a caller must be ready for less than it asked for
    put(&open->node->data, (size_t)open->position, buffer, size);
    open->position += size;
    *done = size;
    wrote(open);
    LEAVE(1);
}
EXPORT int32_t SetFilePointerEx(HANDLE handle, int64_t distance, int64_t *position, uint32_t method) {
    ENTER;
    uint32_t code = fails("SetFilePointerEx");
    if (code) LEAVE_WITH(code, 0);
    Open *open = opened(handle, FILE_HANDLE);
    if (!open) LEAVE_WITH(6, 0);
    if (method) LEAVE_WITH(87, 0);
    open->position = distance;
    if (position) *position = distance;
    LEAVE(1);
}

// BackupRead and BackupWrite.

typedef struct { int writing; Blob held; size_t at; } Context;

static void stream_header(Blob *out, uint32_t id, uint32_t attributes, int64_t size, const W *name, uint32_t name_bytes) {
    uint8_t header[20];
    memcpy(header, &id, 4); memcpy(header + 4, &attributes, 4); memcpy(header + 8, &size, 8); memcpy(header + 16, &name_bytes, 4);
    put(out, out->size, header, 20);
    if (name_bytes) put(out, out->size, (const uint8_t *)name, name_bytes);
}
static void whole(Blob *out, uint32_t id, const Blob *body) {
    if (!body->size) return;
    stream_header(out, id, 0, (int64_t)body->size, NULL, 0);
    put(out, out->size, body->bytes, body->size);
}
static void gather(Node *node, int security, Blob *out) {
    if (security) whole(out, 3, &node->descriptor);
    whole(out, 8, &node->reparse);
    if (node->range_count) {
        stream_header(out, 1, 8, 0, NULL, 0);
        for (size_t i = 0; i < node->range_count; i++) {
            stream_header(out, 9, 0, node->ranges[i].length + 8, NULL, 0);
            put(out, out->size, (uint8_t *)&node->ranges[i].offset, 8);
            put(out, out->size, node->data.bytes + node->ranges[i].offset, (size_t)node->ranges[i].length);
        }
        int64_t end = (int64_t)node->data.size;
        stream_header(out, 9, 0, 8, NULL, 0);
        put(out, out->size, (uint8_t *)&end, 8);
    } else whole(out, 1, &node->data);
    whole(out, 2, &node->extended);
    for (Stream *s = node->streams; s; s = s->next) {
        W name[300];
        size_t n = 0;
        name[n++] = ':';
        memcpy(name + n, s->name, 2 * s->units);
        n += s->units;
        for (const char *c = ":$DATA"; *c;) name[n++] = (W)*c++;
        stream_header(out, 4, 0, (int64_t)s->data.size, name, (uint32_t)(2 * n));
        put(out, out->size, s->data.bytes, s->data.size);
    }
}

EXPORT int32_t BackupRead(HANDLE handle, uint8_t *buffer, uint32_t size, uint32_t *done, int32_t abort, int32_t security, Context **held) {
    ENTER;
    if (abort) {
        say("BackupRead abort");
        if (*held) { free((*held)->held.bytes); free(*held); *held = NULL; contexts_open--; }
        LEAVE(1);
    }
    say("BackupRead size=%u security=%d", size, security);
    uint32_t code = fails("BackupRead");
    Open *open = opened(handle, FILE_HANDLE);
    if (!open) LEAVE_WITH(6, 0);
    if (!*held) {
        *held = calloc(1, sizeof(Context));
        contexts_open++;
        gather(open->node, security, &(*held)->held);
    }
    if (code) LEAVE_WITH(code, 0);
    Context *context = *held;
    size_t left = context->held.size - context->at;
    *done = left < size ? (uint32_t)left : size;
    if (*done) memcpy(buffer, context->held.bytes + context->at, *done);
    context->at += *done;
    LEAVE(1);
}
EXPORT int32_t BackupSeek(HANDLE handle, uint32_t low, uint32_t high, uint32_t *low_done, uint32_t *high_done, Context **held) {
    ENTER;
    say("BackupSeek by=%llu", (unsigned long long)low | (unsigned long long)high << 32);
    uint32_t code = fails("BackupSeek");
    if (code) LEAVE_WITH(code, 0);
    if (!opened(handle, FILE_HANDLE) || !*held) LEAVE_WITH(6, 0);
    (*held)->at += low | (uint64_t)high << 32;
    *low_done = low;
    *high_done = high;
    LEAVE(1);
}

static uint32_t restore(Open *open, uint32_t id, uint32_t attributes, const uint8_t *body, size_t size, const W *name, size_t units, int security) {
    Node *node = open->node;
    switch (id) {
        case 1:
            if (node->attributes & DIRECTORY) return 5;
            cut(&node->data);
            put(&node->data, 0, body, size);
            if (attributes & 8) node->attributes |= SPARSE;
            break;
        case 2: cut(&node->extended); put(&node->extended, 0, body, size); break;
        case 3: if (security) { cut(&node->descriptor); put(&node->descriptor, 0, body, size); } break;
        case 4: {
            Stream *stream = calloc(1, sizeof *stream), **last = &node->streams;
            if (units < 8 || name[0] != ':') { free(stream); return 123; }
            stream->units = units - 7;
            stream->name = malloc(2 * stream->units);
            memcpy(stream->name, name + 1, 2 * stream->units);
            put(&stream->data, 0, body, size);
            while (*last) last = &(*last)->next;
            *last = stream;
            break;
        }
        case 8: cut(&node->reparse); put(&node->reparse, 0, body, size); node->attributes |= REPARSE; break;
        case 9: {
            int64_t offset;
            memcpy(&offset, body, 8);
            put(&node->data, (size_t)offset, body + 8, size - 8);
            if (size > 8) {
                node->ranges = realloc(node->ranges, (node->range_count + 1) * sizeof(Range));
                node->ranges[node->range_count++] = (Range){offset, (int64_t)size - 8};
            }
            break;
        }
        default: if (!id || id > 10) return 13;
    }
    wrote(open);
    return 0;
}

EXPORT int32_t BackupWrite(HANDLE handle, const uint8_t *buffer, uint32_t size, uint32_t *done, int32_t abort, int32_t security, Context **held) {
    ENTER;
    if (abort) {
        say("BackupWrite abort");
        if (*held) { free((*held)->held.bytes); free(*held); *held = NULL; contexts_open--; }
        LEAVE(1);
    }
    say("BackupWrite size=%u security=%d", size, security);
    uint32_t code = fails("BackupWrite");
    Open *open = opened(handle, FILE_HANDLE);
    if (!open || !(open->access & 0x40000000)) LEAVE_WITH(open ? 5 : 6, 0);
    if (!*held) { *held = calloc(1, sizeof(Context)); (*held)->writing = 1; contexts_open++; }
    if (code) LEAVE_WITH(code, 0);
    Context *context = *held;
    put(&context->held, context->held.size, buffer, size);
    *done = size;
    for (;;) {
        const uint8_t *at = context->held.bytes + context->at;
        size_t left = context->held.size - context->at;
        uint32_t id, attributes, name_bytes;
        int64_t body;
        if (left < 20) break;
        memcpy(&id, at, 4); memcpy(&attributes, at + 4, 4); memcpy(&body, at + 8, 8); memcpy(&name_bytes, at + 16, 4);
        if (left - 20 < name_bytes + (uint64_t)body) break;
        uint32_t problem = restore(open, id, attributes, at + 20 + name_bytes, (size_t)body, (const W *)(at + 20), name_bytes / 2, security);
        if (problem) LEAVE_WITH(problem, 0);
        context->at += 20 + name_bytes + (size_t)body;
    }
    LEAVE(1);
}

// Security descriptors.

EXPORT int32_t ConvertStringSecurityDescriptorToSecurityDescriptorW(const W *sddl, uint32_t revision, uint8_t **descriptor, uint32_t *size) {
    ENTER;
    say("ConvertStringSecurityDescriptorToSecurityDescriptorW sddl=%s revision=%u size=%s", text(sddl), revision, size ? "yes" : "no");
    uint32_t code = fails("ConvertStringSecurityDescriptorToSecurityDescriptorW");
    if (code) LEAVE_WITH(code, 0);
    if (sddl[0] != 'O') LEAVE_WITH(1336, 0);
    *descriptor = calloc(1, 20);
    (*descriptor)[0] = 1;
    (*descriptor)[3] = 0x80;
    memory_out++;
    LEAVE(1);
}
EXPORT uint32_t GetSecurityDescriptorLength(const uint8_t *descriptor) { return descriptor[0] == 1 ? 20 : 0; }
EXPORT void *LocalFree(void *memory) {
    ENTER;
    say("LocalFree");
    free(memory);
    memory_out--;
    LEAVE((void *)0);
}
EXPORT void CoTaskMemFree(void *memory) {
    ENTER;
    say("CoTaskMemFree");
    free(memory);
    memory_out--;
    pthread_mutex_unlock(&lock);
}

// Layers by vmcompute.dll. What Windows does with the files is done by the test, which is called back.

typedef int32_t (*LayerWork)(const char *call, const char *layer, const char *other);
static LayerWork layer_work;
EXPORT void stub_layer_work(LayerWork work) { layer_work = work; }

typedef struct { int32_t flavour, pad; const W *home; } Driver;
typedef struct { uint8_t guid[16]; uint32_t flags, pad; const W *path; } Parent;

static int32_t layer_call(const char *name, const Driver *driver, const W *id, const W *other, const Parent *parents, uint32_t count, const char *more) {
    ENTER;
    char about[3000] = "";
    size_t at = 0;
    for (uint32_t i = 0; i < count && at < sizeof about - 600; i++) {
        at += (size_t)snprintf(about + at, sizeof about - at, "%s", i ? "|" : "");
        for (int b = 0; b < 4; b++) at += (size_t)snprintf(about + at, sizeof about - at, "%02x", parents[i].guid[b]);
        at += (size_t)snprintf(about + at, sizeof about - at, ":%u:%s", parents[i].flags, text(parents[i].path));
    }
    char layer[1024], second[1024];
    snprintf(layer, sizeof layer, "%s", text(id));
    snprintf(second, sizeof second, "%s", other ? text(other) : "");
    if (driver) say("%s flavour=%d home='%s' id=%s other=%s parents=%s:%u=%s%s", name, driver->flavour, text(driver->home), layer, second,
                    parents ? "some" : "null", count, about, more);
    else say("%s path=%s%s", name, layer, more);
    uint32_t code = fails(name);
    LayerWork work = layer_work;
    int32_t result = code ? HRESULT_OF(code) : 0;
    pthread_mutex_unlock(&lock);
    if (!result && work) result = work(name, layer, second);
    return result;
}
#define P const Driver *driver, const W *id
EXPORT int32_t ImportLayer(P, const W *folder, const Parent *parents, uint32_t count) { return layer_call("ImportLayer", driver, id, folder, parents, count, ""); }
EXPORT int32_t ExportLayer(P, const W *folder, const Parent *parents, uint32_t count) { return layer_call("ExportLayer", driver, id, folder, parents, count, ""); }
EXPORT int32_t ActivateLayer(P) { return layer_call("ActivateLayer", driver, id, NULL, NULL, 0, ""); }
EXPORT int32_t DeactivateLayer(P) { return layer_call("DeactivateLayer", driver, id, NULL, NULL, 0, ""); }
EXPORT int32_t UnprepareLayer(P) { return layer_call("UnprepareLayer", driver, id, NULL, NULL, 0, ""); }
EXPORT int32_t DestroyLayer(P) { return layer_call("DestroyLayer", driver, id, NULL, NULL, 0, ""); }
EXPORT int32_t PrepareLayer(P, const Parent *parents, uint32_t count) { return layer_call("PrepareLayer", driver, id, NULL, parents, count, ""); }
EXPORT int32_t CreateLayer(P, const W *parent) { return layer_call("CreateLayer", driver, id, parent, NULL, 0, ""); }
EXPORT int32_t CreateSandboxLayer(P, uint64_t zero, const Parent *parents, uint32_t count) {
    return layer_call("CreateSandboxLayer", driver, id, NULL, parents, count, zero ? " reserved" : "");
}
EXPORT int32_t ExpandSandboxSize(P, uint64_t size) {
    char more[40];
    snprintf(more, sizeof more, " size=%llu", (unsigned long long)size);
    return layer_call("ExpandSandboxSize", driver, id, NULL, NULL, 0, more);
}
EXPORT int32_t LayerExists(P, uint32_t *exists) {
    int32_t result = layer_call("LayerExists", driver, id, NULL, NULL, 0, "");
    *exists = 1;
    return result;
}
EXPORT int32_t GetLayerMountPath(P, size_t *length, W *buffer) {
    static const char path[] = "\\\\?\\Volume{1}";
    int32_t result = layer_call("GetLayerMountPath", driver, id, NULL, NULL, 0, buffer ? " buffer" : " no buffer");
    if (result) return result;
    if (buffer && *length < sizeof path) return HRESULT_OF(122);
    if (buffer) for (size_t i = 0; i < sizeof path; i++) buffer[i] = (W)path[i];
    *length = sizeof path;
    return 0;
}
EXPORT int32_t NameToGuid(const W *name, uint8_t *guid) {
    ENTER;
    say("NameToGuid name=%s", text(name));
    uint32_t code = fails("NameToGuid");
    if (code) LEAVE(HRESULT_OF(code));
    memset(guid, 0, 16);
    for (size_t i = 0; name[i]; i++) guid[i % 16] ^= (uint8_t)name[i];
    LEAVE(0);
}
EXPORT int32_t ProcessBaseImage(const W *path) { return layer_call("ProcessBaseImage", NULL, path, NULL, NULL, 0, ""); }
EXPORT int32_t ProcessUtilityImage(const W *path) { return layer_call("ProcessUtilityImage", NULL, path, NULL, NULL, 0, ""); }
EXPORT int32_t GrantVmAccess(const W *vm, const W *path) {
    ENTER;
    say("GrantVmAccess vm=%s path=%s", text(vm), text(path));
    uint32_t code = fails("GrantVmAccess");
    LEAVE(code ? HRESULT_OF(code) : 0);
}

// Layers by computestorage.dll.

#define STORAGE(NAME, DECLARED, FORMAT, ...)                  \
    EXPORT int32_t NAME DECLARED {                            \
        ENTER;                                                \
        say(#NAME FORMAT, __VA_ARGS__);                       \
        uint32_t code = fails(#NAME);                         \
        LEAVE(code ? HRESULT_OF(code) : 0);                   \
    }
STORAGE(HcsImportLayer, (const W *layer, const W *source, const W *about), " layer=%s source=%s data=%s", text(layer), text(source), text(about))
STORAGE(HcsExportLayer, (const W *layer, const W *folder, const W *about, const W *options), " layer=%s folder=%s data=%s options=%s", text(layer), text(folder), text(about), text(options))
STORAGE(HcsDestroyLayer, (const W *layer), " layer=%s", text(layer))
STORAGE(HcsSetupBaseOSLayer, (const W *layer, HANDLE disk, const W *options), " layer=%s disk=%llu options=%s", text(layer), (unsigned long long)disk, text(options))
STORAGE(HcsSetupBaseOSVolume, (const W *layer, const W *volume, const W *options), " layer=%s volume=%s options=%s", text(layer), text(volume), text(options))
STORAGE(HcsInitializeWritableLayer, (const W *path, const W *about, const W *options), " path=%s data=%s options=%s", text(path), text(about), text(options))
STORAGE(HcsAttachLayerStorageFilter, (const W *path, const W *about), " path=%s data=%s", text(path), text(about))
STORAGE(HcsDetachLayerStorageFilter, (const W *path), " path=%s", text(path))
STORAGE(HcsFormatWritableLayerVhd, (HANDLE disk), " disk=%llu", (unsigned long long)disk)

static W *told(const char *path) {
    size_t count = strlen(path) + 1;
    W *copy = malloc(2 * count);
    for (size_t i = 0; i < count; i++) copy[i] = (W)path[i];
    memory_out++;
    return copy;
}
EXPORT int32_t HcsGetLayerVhdMountPath(HANDLE disk, W **path) {
    ENTER;
    say("HcsGetLayerVhdMountPath disk=%llu", (unsigned long long)disk);
    uint32_t code = fails("HcsGetLayerVhdMountPath");
    if (code) LEAVE(HRESULT_OF(code));
    *path = told("\\\\?\\Volume{2}");
    LEAVE(0);
}

// Hives by offreg.dll.

#define TRY(NAME) do { uint32_t code_ = fails(NAME); if (code_) LEAVE(code_); } while (0)
EXPORT uint32_t ORCreateHive(HANDLE *hive) {
    ENTER;
    say("ORCreateHive");
    TRY("ORCreateHive");
    *hive = hand_out((Open){.kind = HIVE});
    LEAVE(0u);
}
EXPORT uint32_t OROpenHive(const W *path, HANDLE *hive) {
    ENTER;
    say("OROpenHive path=%s", text(path));
    TRY("OROpenHive");
    *hive = hand_out((Open){.kind = HIVE});
    LEAVE(0u);
}
EXPORT uint32_t ORCloseHive(HANDLE hive) {
    ENTER;
    say("ORCloseHive");
    LEAVE(take_back(hive, HIVE) ? 0u : 6u);
}
EXPORT uint32_t ORSaveHive(HANDLE hive, const W *path, uint32_t major, uint32_t minor) {
    ENTER;
    say("ORSaveHive path=%s version=%u.%u", text(path), major, minor);
    TRY("ORSaveHive");
    if (!opened(hive, HIVE)) LEAVE(6u);
    const W *inner = on_drive(path);
    Place place;
    if (inner && !walk(root, inner, length_of(inner), 0, &place)) {
        if (place.node) LEAVE(183u);
        Node *node = new_node(ARCHIVE);
        put(&node->data, 0, (const uint8_t *)"regf", 4);
        add(place.above, place.name, place.units, node);
    }
    LEAVE(0u);
}
EXPORT uint32_t ORMergeHives(const HANDLE *hives, uint32_t count, HANDLE *result) {
    ENTER;
    say("ORMergeHives count=%u", count);
    TRY("ORMergeHives");
    for (uint32_t i = 0; i < count; i++) if (!opened(hives[i], HIVE)) LEAVE(6u);
    *result = hand_out((Open){.kind = HIVE});
    LEAVE(0u);
}
EXPORT uint32_t OROpenKey(HANDLE above, const W *name, HANDLE *key) {
    ENTER;
    say("OROpenKey name=%s", text(name));
    TRY("OROpenKey");
    if (!opened(above, HIVE) && !opened(above, KEY)) LEAVE(6u);
    *key = hand_out((Open){.kind = KEY});
    LEAVE(0u);
}
EXPORT uint32_t ORCreateKey(HANDLE above, const W *name, const W *class, uint32_t options, void *descriptor, HANDLE *key, uint32_t *disposition) {
    ENTER;
    say("ORCreateKey name=%s class=%s options=%u descriptor=%s", text(name), text(class), options, descriptor ? "yes" : "no");
    TRY("ORCreateKey");
    if (!opened(above, HIVE) && !opened(above, KEY)) LEAVE(6u);
    *key = hand_out((Open){.kind = KEY});
    if (disposition) *disposition = 1;
    LEAVE(0u);
}
EXPORT uint32_t ORCloseKey(HANDLE key) {
    ENTER;
    say("ORCloseKey");
    LEAVE(take_back(key, KEY) ? 0u : 6u);
}
EXPORT uint32_t ORDeleteKey(HANDLE key, const W *name) {
    ENTER;
    say("ORDeleteKey name=%s", text(name));
    TRY("ORDeleteKey");
    LEAVE(opened(key, HIVE) || opened(key, KEY) ? 0u : 6u);
}
EXPORT uint32_t ORSetValue(HANDLE key, const W *name, uint32_t type, const uint8_t *bytes, uint32_t size) {
    ENTER;
    say("ORSetValue name=%s type=%u size=%u first=%d", text(name), type, size, size ? bytes[0] : -1);
    TRY("ORSetValue");
    LEAVE(opened(key, HIVE) || opened(key, KEY) ? 0u : 6u);
}
EXPORT uint32_t ORGetValue(HANDLE key, const W *subkey, const W *name, uint32_t *type, uint8_t *bytes, uint32_t *size) {
    ENTER;
    say("ORGetValue subkey=%s name=%s room=%u", text(subkey), text(name), bytes ? *size : 0);
    TRY("ORGetValue");
    if (!opened(key, HIVE) && !opened(key, KEY)) LEAVE(6u);
    uint32_t room = *size;
    *type = 3;
    *size = 300;
    if (!bytes || room < 300) LEAVE(234u);
    memset(bytes, 0xAB, 300);
    LEAVE(0u);
}

// Disks by virtdisk.dll.

EXPORT uint32_t OpenVirtualDisk(const uint8_t *type, const W *path, uint32_t access, uint32_t flags, const uint8_t *parameters, HANDLE *handle) {
    ENTER;
    uint32_t device, version, read_only;
    memcpy(&device, type, 4); memcpy(&version, parameters, 4); memcpy(&read_only, parameters + 8, 4);
    say("OpenVirtualDisk device=%u vendor=%02x%02x path=%s access=0x%x flags=%u version=%u read_only=%u", device, type[4], type[19], text(path), access, flags, version, read_only);
    TRY("OpenVirtualDisk");
    *handle = hand_out((Open){.kind = DISK});
    LEAVE(0u);
}
EXPORT uint32_t CreateVirtualDisk(const uint8_t *type, const W *path, uint32_t access, void *descriptor, uint32_t flags, uint32_t provider,
                                  const uint8_t *parameters, void *overlapped, HANDLE *handle) {
    ENTER;
    uint32_t device, version, block, sector;
    uint64_t size;
    const W *parent;
    memcpy(&device, type, 4); memcpy(&version, parameters, 4); memcpy(&size, parameters + 24, 8);
    memcpy(&block, parameters + 32, 4); memcpy(&sector, parameters + 36, 4); memcpy(&parent, parameters + 48, 8);
    say("CreateVirtualDisk device=%u path=%s access=0x%x descriptor=%s flags=%u provider=%u version=%u size=%llu block=%u sector=%u parent=%s overlapped=%s", device,
        text(path), access, descriptor ? "yes" : "no", flags, provider, version, (unsigned long long)size, block, sector, text(parent), overlapped ? "yes" : "no");
    TRY("CreateVirtualDisk");
    *handle = hand_out((Open){.kind = DISK});
    LEAVE(0u);
}
EXPORT uint32_t AttachVirtualDisk(HANDLE disk, void *descriptor, uint32_t flags, uint32_t provider, const uint32_t *parameters, void *overlapped) {
    ENTER;
    say("AttachVirtualDisk descriptor=%s flags=%u provider=%u version=%u overlapped=%s", descriptor ? "yes" : "no", flags, provider, parameters[0], overlapped ? "yes" : "no");
    TRY("AttachVirtualDisk");
    LEAVE(opened(disk, DISK) ? 0u : 6u);
}
EXPORT uint32_t DetachVirtualDisk(HANDLE disk, uint32_t flags, uint32_t provider) {
    ENTER;
    say("DetachVirtualDisk flags=%u provider=%u", flags, provider);
    TRY("DetachVirtualDisk");
    LEAVE(opened(disk, DISK) ? 0u : 6u);
}
EXPORT uint32_t GetVirtualDiskPhysicalPath(HANDLE disk, uint32_t *size, W *path) {
    ENTER;
    static const char drive[] = "\\\\.\\PhysicalDrive7";
    say("GetVirtualDiskPhysicalPath room=%u", *size);
    TRY("GetVirtualDiskPhysicalPath");
    uint32_t room = *size;
    *size = 2 * sizeof drive;
    if (!opened(disk, DISK)) LEAVE(6u);
    if (room < *size) LEAVE(122u);
    for (size_t i = 0; i < sizeof drive; i++) path[i] = (W)drive[i];
    LEAVE(0u);
}

EXPORT void stub_reset(void) {
    ENTER;
    for (size_t i = 0; i < open_count; i++) { free(opens[i].name); opens[i].name = NULL; opens[i].kind = FREE; }
    if (root) free_node(root);
    now = 133000000000000000;
    next_id = 0;
    root = new_node(DIRECTORY);
    root->links = 1;
    account = 7;
    process = 0;
    impersonates = 0;
    handles_open = contexts_open = memory_out = 0;
    log_size = 0;
    if (log_text) log_text[0] = 0;
    fail_after = -1;
    failed[0] = 0;
    layer_work = NULL;
    pthread_mutex_unlock(&lock);
}
__attribute__((constructor)) static void begin(void) {
    pthread_mutexattr_t kind;
    pthread_mutexattr_init(&kind);
    pthread_mutexattr_settype(&kind, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&lock, &kind);
    stub_reset();
}
