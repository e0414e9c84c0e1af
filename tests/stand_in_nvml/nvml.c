/* A stand-in for libnvidia-ml.so.1: the functions that the monitor calls, with figures from a text file.
 *
 * PACELINE_STAND_IN_NVML names the file, which is read anew at every call: replace it by renaming another over it.
 * Each line is "<name> <integer>". Names are `count`, `gpu<i>.<figure>`, `gpu<i>.<figure>.error` (returned in the place
 * of the figure: 3 not supported, 4 no permission, 13 function not found, 15 GPU is lost), `gpu<i>.<figure>.delay_ms`
 * (a slow driver), the same for `init`, and `cuda_version` (1000 x major + 10 x minor). A figure that is not there is 0.
 * Signatures and structures are those of NVIDIA's nvml.h.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

typedef void *Device;
enum { MIG = 1000 };

/* The file's text, read again only when another file took its place: its cost must not count as the monitor's. */
static const char *text(void) {
    static char content[65536] = "\n";
    static ino_t inode;
    const char *path = getenv("PACELINE_STAND_IN_NVML");
    struct stat now;
    if (!path || stat(path, &now) || now.st_ino == inode) return content;
    FILE *file = fopen(path, "r");
    if (!file) return content;
    content[1 + fread(content + 1, 1, sizeof content - 2, file)] = 0;
    fclose(file);
    inode = now.st_ino;
    return content;
}

static long look(const char *wanted) {
    char line[130];
    snprintf(line, sizeof line, "\n%s ", wanted);
    const char *found = strstr(text(), line);
    return found ? strtol(found + strlen(line), NULL, 10) : 0;
}

static long part(const char *name, const char *suffix) {
    char key[128];
    snprintf(key, sizeof key, "%s%s", name, suffix);
    return look(key);
}

static int outcome(const char *name) {
    long delay = part(name, ".delay_ms");
    struct timespec span = {delay / 1000, delay % 1000 * 1000000};
    if (delay) nanosleep(&span, NULL);
    return (int)part(name, ".error");
}

/* Reads one figure of a GPU; returns NVML's error number, 0 for success. */
static int read_figure(Device device, const char *figure, long *value) {
    char name[96];
    int error;
    snprintf(name, sizeof name, "gpu%ld.%s", (long)(intptr_t)device - 1, figure);
    error = outcome(name);
    if (!error) *value = look(name);
    return error;
}

static int read_unsigned(Device device, const char *figure, unsigned *out) {
    long value = 0;
    int error = read_figure(device, figure, &value);
    if (!error) *out = (unsigned)value;
    return error;
}

int nvmlInitWithFlags(unsigned flags) { (void)flags; return outcome("init"); }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { (void)code; return "an error of the stand-in"; }
int nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = (int)look("cuda_version"); return 0; }

int nvmlSystemGetDriverVersion(char *version, unsigned length) {
    snprintf(version, length, "999.1");
    return 0;
}

int nvmlDeviceGetCount_v2(unsigned *count) { *count = (unsigned)look("count"); return 0; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device *device) {
    long ignored;
    *device = (Device)(intptr_t)(index + 1);
    return index < (unsigned)look("count") ? read_figure(*device, "handle", &ignored) : 2;
}

int nvmlDeviceGetUUID(Device device, char *uuid, unsigned length) {
    snprintf(uuid, length, "GPU-%04ld-stand-in", (long)(intptr_t)device - 1);
    return 0;
}

int nvmlDeviceGetName(Device device, char *name, unsigned length) {
    long ignored;
    snprintf(name, length, "Stand-in");
    return read_figure(device, "name", &ignored);
}

/* 9.0 unless the figure says otherwise: 10 x major + minor. */
int nvmlDeviceGetCudaComputeCapability(Device device, int *major, int *minor) {
    long value = 0;
    int error = read_figure(device, "capability", &value);
    *major = value ? (int)value / 10 : 9, *minor = (int)value % 10;
    return error;
}

int nvmlDeviceGetIndex(Device device, unsigned *index) {
    *index = (unsigned)(intptr_t)device - 1;
    return 0;
}

/* MIG-<i>-<anything> is an instance on GPU i. */
int nvmlDeviceGetHandleByUUID(const char *uuid, Device *device) {
    int index;
    if (sscanf(uuid, "MIG-%d-", &index) != 1) return 6;
    *device = (Device)(intptr_t)(MIG + index + 1);
    return 0;
}

int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(Device instance, Device *device) {
    *device = (Device)((intptr_t)instance - MIG);
    return 0;
}

struct utilization { unsigned gpu, memory; };
int nvmlDeviceGetUtilizationRates(Device device, struct utilization *rates) {
    return read_unsigned(device, "utilization_percent", &rates->gpu);
}

struct memory { unsigned long long total, free, used; };
int nvmlDeviceGetMemoryInfo(Device device, struct memory *memory) {
    long used = 0, total = 0;
    int error = read_figure(device, "memory_v1_used_bytes", &used);
    if (!error) error = read_figure(device, "memory_total_bytes", &total);
    memory->used = used, memory->total = total, memory->free = total - used;
    return error;
}

struct memory_v2 { unsigned version; unsigned long long total, reserved, free, used; };
int nvmlDeviceGetMemoryInfo_v2(Device device, struct memory_v2 *memory) {
    long used = 0, total = 0;
    int error = read_figure(device, "memory_used_bytes", &used);
    if (!error) error = read_figure(device, "memory_total_bytes", &total);
    memory->used = used, memory->total = total, memory->free = total - used;
    return error;
}

int nvmlDeviceGetPowerUsage(Device device, unsigned *mw) { return read_unsigned(device, "power_mw", mw); }
int nvmlDeviceGetEnforcedPowerLimit(Device device, unsigned *mw) {
    return read_unsigned(device, "power_limit_mw", mw);
}
int nvmlDeviceGetTemperature(Device device, int sensor, unsigned *celsius) {
    (void)sensor;
    return read_unsigned(device, "temperature_celsius", celsius);
}

int nvmlDeviceGetClockInfo(Device device, int kind, unsigned *mhz) {
    return read_unsigned(device, kind == 1 ? "sm_clock_mhz" : "memory_clock_mhz", mhz);
}

int nvmlDeviceGetCurrentClocksEventReasons(Device device, unsigned long long *reasons) {
    long value = 0;
    int error = read_figure(device, "event_reasons", &value);
    *reasons = (unsigned long long)value;
    return error;
}

int nvmlDeviceGetCurrentClocksThrottleReasons(Device device, unsigned long long *reasons) {
    long value = 0;
    int error = read_figure(device, "throttle_reasons", &value);
    *reasons = (unsigned long long)value;
    return error;
}

int nvmlDeviceGetTotalEccErrors(Device device, int kind, int counter, unsigned long long *count) {
    long value = 0;
    int error = read_figure(device, kind == 1 && counter == 0 ? "ecc_uncorrected" : "ecc_other", &value);
    *count = (unsigned long long)value;
    return error;
}

int nvmlDeviceGetRemappedRows(Device device, unsigned *corrected, unsigned *uncorrected, unsigned *pending,
                              unsigned *failure) {
    int error = read_unsigned(device, "rows_pending", pending);
    *corrected = *uncorrected = 0;
    return error ? error : read_unsigned(device, "rows_failed", failure);
}

/* Persistence mode is on unless the figure says otherwise. */
int nvmlDeviceGetPersistenceMode(Device device, unsigned *mode) {
    unsigned off = 0;
    int error = read_unsigned(device, "persistence_off", &off);
    *mode = !off;
    return error;
}

int nvmlDeviceGetCurrPcieLinkWidth(Device device, unsigned *lanes) { return read_unsigned(device, "pcie_width", lanes); }
int nvmlDeviceGetMaxPcieLinkWidth(Device device, unsigned *lanes) { return read_unsigned(device, "pcie_widest", lanes); }

int nvmlDeviceGetNvLinkState(Device device, unsigned link, unsigned *active) {
    unsigned links = 0;
    int error = read_unsigned(device, "nvlinks", &links);
    *active = link < links;
    return error;
}

int nvmlDeviceGetP2PStatus(Device device, Device peer, int kind, int *status) {
    (void)peer, (void)kind;
    return read_unsigned(device, "p2p_status", (unsigned *)status);
}

struct process { unsigned pid; unsigned long long memory; unsigned instance, compute; };
int nvmlDeviceGetComputeRunningProcesses_v3(Device device, unsigned *count, struct process *found) {
    unsigned pid = 0, room = *count;
    int error = read_unsigned(device, "process", &pid);
    *count = pid != 0;
    if (error || !pid) return error;
    if (!room) return 7;
    found[0] = (struct process){pid, 1 << 30, 0, 0};
    return 0;
}
