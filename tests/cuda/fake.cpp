// CUDA's driver, NVRTC and cublasLt without a GPU, as far as crate `gpu` calls them: one library under their three names, so
// that a test sees whether they are called as they ask, and in an order that holds.
//
// Work on a stream is put off until somebody waits for it, as a GPU may do; with FAKE_CUDA=beside the second stream is run as
// early as its waits allow, which a GPU may do as well. "Machine code" is the source, which is compiled when it is loaded, by
// the machine's C++ compiler and the header that FAKE_CUDA_EMULATOR names. Matrices are column-major, as in cublasLt.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <dlfcn.h>
#include <fstream>
#include <functional>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <unistd.h>
#include <vector>

#define API extern "C" __attribute__((visibility("default")))
typedef uint64_t Pointer;

static void fail(const std::string& what) {
    fprintf(stderr, "fake CUDA: %s\n", what.c_str());
    abort();
}
static void expect(bool holds, const char* what) {
    if (!holds) fail(what);
}

// Memory

static std::map<Pointer, size_t> device_memory, pinned_memory;

static bool within(const std::map<Pointer, size_t>& memory, Pointer at, size_t bytes) {
    auto next = memory.upper_bound(at);
    if (next == memory.begin()) return false;
    auto [start, size] = *--next;
    return at + bytes <= start + size;
}
static void expect_device(Pointer at, size_t bytes, const char* what) { expect(within(device_memory, at, bytes), what); }

// Streams

struct Stream;
struct Event {
    Stream* stream = nullptr;
    uint64_t recorded = 0;  // the number of operations of the stream before it
    double time = 0;
};
struct Stream {
    std::deque<std::function<void()>> waiting;
    uint64_t put = 0, done = 0;
    bool early = false;
};

static void run_until(Stream* stream, uint64_t number) {
    while (stream->done < number) {
        auto work = std::move(stream->waiting.front());
        stream->waiting.pop_front();
        stream->done++;
        work();
    }
}
static void put(Stream* stream, std::function<void()> work) {
    expect(stream, "the null stream is used");
    stream->waiting.push_back(std::move(work));
    stream->put++;
    if (stream->early) run_until(stream, stream->put);
}

static int context_depth = 0;
static thread_local bool current = false;
static int streams = 0;

API int cuInit(unsigned) { return 0; }
API int cuDeviceGetCount(int* count) { return *count = 1, 0; }
API int cuDeviceGet(int* device, int ordinal) { return *device = ordinal, 0; }
API int cuDeviceGetName(char* name, int length, int) { return snprintf(name, length, "fake GPU"), 0; }
API int cuDeviceGetAttribute(int* value, int attribute, int) {
    switch (attribute) {
        case 75: return *value = 9, 0;    // compute capability, major
        case 76: return *value = 0, 0;    // and minor
        case 16: return *value = 4, 0;    // multiprocessors
        case 97: return *value = 232448, 0;  // shared memory of a block
    }
    fail("an attribute that is not known: " + std::to_string(attribute));
    return 1;
}
API int cuDevicePrimaryCtxRetain(void** context, int) { return context_depth++, *context = &context_depth, 0; }
API int cuDevicePrimaryCtxRelease_v2(int) { return context_depth--, 0; }
API int cuCtxSetCurrent(void* context) { return current = context != nullptr, 0; }
API int cuMemGetInfo_v2(size_t* free, size_t* total) { return *free = size_t(6) << 30, *total = size_t(8) << 30, 0; }
API int cuMemAlloc_v2(Pointer* at, size_t bytes) {
    expect(current, "no context");
    void* memory = nullptr;
    if (posix_memalign(&memory, 256, bytes)) return 2;
    memset(memory, 0xff, bytes);  // noise
    device_memory[*at = (Pointer)memory] = bytes;
    return 0;
}
API int cuMemFree_v2(Pointer at) {
    expect(device_memory.erase(at), "memory is given back that was not taken");
    return free((void*)at), 0;
}
API int cuMemHostAlloc(void** at, size_t bytes, unsigned) { return pinned_memory[(Pointer)(*at = malloc(bytes))] = bytes, 0; }
API int cuMemFreeHost(void* at) {
    expect(pinned_memory.erase((Pointer)at), "pinned memory is given back that was not taken");
    return free(at), 0;
}
API int cuStreamCreate(Stream** stream, unsigned flags) {
    expect(flags == 1, "a stream that waits for the null stream");
    const char* order = getenv("FAKE_CUDA");
    *stream = new Stream;
    (*stream)->early = ++streams % 2 == 0 && order && !strcmp(order, "beside");
    return 0;
}
API int cuStreamDestroy_v2(Stream* stream) { return run_until(stream, stream->put), 0; }
API int cuStreamSynchronize(Stream* stream) { return run_until(stream, stream->put), 0; }
API int cuEventCreate(Event** event, unsigned) { return *event = new Event, 0; }
API int cuEventDestroy_v2(Event* event) { return delete event, 0; }
API int cuEventRecord(Event* event, Stream* stream) {
    event->stream = stream;
    event->recorded = stream->put;
    return 0;
}
API int cuEventSynchronize(Event* event) { return event->stream ? run_until(event->stream, event->recorded) : void(), 0; }
API int cuStreamWaitEvent(Stream* stream, Event* event, unsigned) {
    if (Event at = *event; at.stream) put(stream, [at] { run_until(at.stream, at.recorded); });
    return 0;
}
API int cuEventQuery(Event* event) { return cuEventSynchronize(event); }
API int cuDriverGetVersion(int* version) { return *version = 13000, 0; }
API int cuEventElapsedTime(float* milliseconds, Event*, Event*) { return *milliseconds = 1, 0; }
API int cuMemsetD8Async(Pointer at, unsigned char value, size_t bytes, Stream* stream) {
    expect_device(at, bytes, "memory is set that was not taken");
    put(stream, [=] { memset((void*)at, value, bytes); });
    return 0;
}
API int cuMemcpyHtoDAsync_v2(Pointer to, const void* from, size_t bytes, Stream* stream) {
    expect_device(to, bytes, "a copy to memory that was not taken");
    expect(within(pinned_memory, (Pointer)from, bytes), "a copy from memory that is not pinned");
    put(stream, [=] { memcpy((void*)to, from, bytes); });
    return 0;
}
API int cuMemcpyDtoHAsync_v2(void* to, Pointer from, size_t bytes, Stream* stream) {
    expect_device(from, bytes, "a copy from memory that was not taken");
    put(stream, [=] { memcpy(to, (void*)from, bytes); });
    return 0;
}

// Kernels

struct Function {
    std::string name;
    bool (*run)(unsigned, unsigned, unsigned, unsigned, void**, unsigned, unsigned, bool);
    int parameters;
    int shared = 48 << 10;
};
static std::vector<std::string> names_of(const std::string& source) {
    std::vector<std::string> names;
    std::istringstream lines(source);
    for (std::string line, kernel = "extern \"C\" __global__ void "; std::getline(lines, line);) {
        if (line.rfind(kernel, 0) == 0) {
            names.push_back(line.substr(kernel.size(), line.find('(') - kernel.size()));
        } else if (line.rfind("KERNEL_", 0) == 0) {
            size_t open = line.find('(');
            names.push_back(line.substr(open + 1, line.find(',') - open - 1));
        }
    }
    return names;
}

API int cuModuleLoadData(void** module, const void* image) {
    expect(!memcmp(image, "FAKE", 4), "no image of the compiler's");
    std::string source = (const char*)image + 4, emulator = getenv("FAKE_CUDA_EMULATOR");
    // Beside the header, once for each source.
    std::string path = emulator + "." + std::to_string(std::hash<std::string>()(source));
    if ((*module = dlopen((path + ".so").c_str(), RTLD_NOW))) return 0;
    std::ofstream file(path + ".cpp");
    file << "#include \"" << emulator << "\"\n" << source << "\ntemplate <class... A> int count(void (*)(A...)) { return sizeof...(A); }\n";
    for (auto& name : names_of(source)) {
        file << "extern \"C\" bool run_" << name
             << "(unsigned x, unsigned y, unsigned threads, unsigned shared, void** a, unsigned first, unsigned last, bool b) {"
             << "return emulator::run(" << name << ", {x, y}, threads, shared, a, first, last, b); }\n"
             << "extern \"C\" int parameters_" << name << "() { return count(" << name << "); }\n";
    }
    file.close();
    expect(!system(("c++ -std=c++17 -O2 -w -U_FORTIFY_SOURCE -shared -fPIC -o " + path + ".so " + path + ".cpp").c_str()), "the kernels do not compile");
    *module = dlopen((path + ".so").c_str(), RTLD_NOW);
    return *module ? 0 : 1;
}
API int cuModuleUnload(void*) { return 0; }
API int cuModuleGetFunction(Function** function, void* module, const char* name) {
    auto run = dlsym(module, ("run_" + std::string(name)).c_str());
    auto parameters = (int (*)())dlsym(module, ("parameters_" + std::string(name)).c_str());
    if (!run) return 500;
    *function = new Function{name, (decltype(Function::run))run, parameters()};
    return 0;
}
API int cuFuncSetAttribute(Function* function, int attribute, int value) {
    expect(attribute == 8 && value <= 232448, "an attribute of a function that is not known, or too much shared memory");
    return function->shared = value, 0;
}
API int cuLaunchKernel(
    Function* function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned ty, unsigned tz, unsigned shared, Stream* stream,
    void** parameters, void**) {
    expect(x > 0 && y > 0 && y < 65536 && z == 1 && threads > 0 && threads <= 1024 && ty == 1 && tz == 1, "the shape of a launch");
    expect((int)shared <= function->shared, "more shared memory than was asked for before");
    std::vector<uint64_t> values(function->parameters);
    for (int i = 0; i < function->parameters; i++) memcpy(&values[i], parameters[i], 8);
    put(stream, [=]() mutable {
        std::vector<void*> arguments;
        for (auto& value : values) arguments.push_back(&value);
        // Whether its threads meet shows in the first block.
        bool meet = function->run(x, y, threads, shared, arguments.data(), 0, 1, true);
        if (x * y > 1) function->run(x, y, threads, shared, arguments.data(), 1, x * y, meet);
    });
    return 0;
}

// NVRTC

static std::string program;
API int nvrtcVersion(int* major, int* minor) { return *major = 0, *minor = getpid(), 0; }
API int nvrtcCreateProgram(void** at, const char* source, const char*, int, const char**, const char**) {
    program = std::string("FAKE") + source;
    return *at = &program, 0;
}
API int nvrtcCompileProgram(void*, int, const char**) { return 0; }
API int nvrtcDestroyProgram(void**) { return 0; }
API int nvrtcGetCUBINSize(void*, size_t* bytes) { return *bytes = program.size() + 1, 0; }
API int nvrtcGetCUBIN(void*, char* to) { return memcpy(to, program.c_str(), program.size() + 1), 0; }

// cublasLt

struct Operation {
    int transpose[2] = {0, 0};
    unsigned epilogue = 1;
    Pointer bias = 0;
    int bias_type = -1;
};
struct Layout {
    int type;
    uint64_t rows, columns;
    int64_t leading;
};
static size_t size_of(int type) { return type == 0 ? 4 : type == 2 || type == 14 ? 2 : (fail("a type that is not known"), 0); }
static float get(Pointer at, size_t i, int type) {
    if (type == 0) return ((float*)at)[i];
    uint32_t bits = ((uint16_t*)at)[i];
    expect(type == 14, "float16 is not made");
    bits <<= 16;
    float x;
    return memcpy(&x, &bits, 4), x;
}
static void set(Pointer at, size_t i, int type, float x) {
    if (type == 0) {
        ((float*)at)[i] = x;
        return;
    }
    uint32_t bits;
    memcpy(&bits, &x, 4);
    ((uint16_t*)at)[i] = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

API int cublasLtCreate(void** handle) { return *handle = &streams, 0; }
API int cublasLtDestroy(void*) { return 0; }
API int cublasLtMatmulDescCreate(Operation** operation, int compute, int scale) {
    expect(compute == 68 && scale == 0, "sums in anything but float32");
    return *operation = new Operation, 0;
}
API int cublasLtMatmulDescDestroy(Operation* operation) { return delete operation, 0; }
API int cublasLtMatmulDescSetAttribute(Operation* operation, int attribute, const void* value, size_t bytes) {
    switch (attribute) {
        case 3: case 4: return expect(bytes == 4, "bytes"), memcpy(&operation->transpose[attribute - 3], value, 4), 0;
        case 7: return expect(bytes == 4, "bytes"), memcpy(&operation->epilogue, value, 4), 0;
        case 8: return expect(bytes == 8, "bytes"), memcpy(&operation->bias, value, 8), 0;
        case 26: return expect(bytes == 4, "bytes"), memcpy(&operation->bias_type, value, 4), 0;
    }
    fail("an attribute of products that is not known: " + std::to_string(attribute));
    return 1;
}
API int cublasLtMatrixLayoutCreate(Layout** layout, int type, uint64_t rows, uint64_t columns, int64_t leading) {
    expect(leading >= (int64_t)rows, "columns that overlap");
    return *layout = new Layout{type, rows, columns, leading}, 0;
}
API int cublasLtMatrixLayoutDestroy(Layout* layout) { return delete layout, 0; }
API int cublasLtMatmulPreferenceCreate(void** preference) { return *preference = &streams, 0; }
API int cublasLtMatmulPreferenceDestroy(void*) { return 0; }
API int cublasLtMatmulPreferenceSetAttribute(void*, int attribute, const void* value, size_t) {
    unsigned bytes;
    memcpy(&bytes, value, 4);
    expect(attribute == 1 || (bytes & (bytes - 1)) == 0, "an alignment that is no power of two");
    return 0;
}
API int cublasLtMatmulAlgoGetHeuristic(
    void*, Operation*, Layout*, Layout*, Layout*, Layout*, void*, int asked, void* results, int* found) {
    // The algorithm is 64 bytes; then the workspace, the state (0), the waves and reserved words.
    memset(results, 0, 64 + 8 + 4 + 4 + 16);
    return *found = asked, 0;
}
API int cublasLtMatmul(
    void*, Operation* operation, const float* alpha, Pointer a, Layout* la, Pointer b, Layout* lb, const float* beta, Pointer c, Layout* lc,
    Pointer d, Layout* ld, const void*, void*, size_t, Stream* stream) {
    Operation o = *operation;
    Layout A = *la, B = *lb, C = *lc, D = *ld;
    float scale = *alpha, keep = *beta;
    uint64_t m = o.transpose[0] ? A.columns : A.rows, k = o.transpose[0] ? A.rows : A.columns, n = o.transpose[1] ? B.rows : B.columns;
    expect((o.transpose[1] ? B.columns : B.rows) == k && D.rows == m && D.columns == n && C.rows == m && C.columns == n, "shapes");
    expect(A.type == B.type && C.type == D.type, "types");
    expect(o.epilogue == 1 || (o.epilogue == 4 && o.bias && o.bias_type == D.type), "an epilogue that is not known");
    for (auto [at, layout] : {std::pair{a, A}, {b, B}, {c, C}, {d, D}})
        expect_device(at, ((layout.columns - 1) * layout.leading + layout.rows) * size_of(layout.type), "a matrix outside of what was taken");
    put(stream, [=] {
        std::vector<float> x(m * k), y(k * n);
        for (uint64_t i = 0; i < m; i++)
            for (uint64_t j = 0; j < k; j++) x[i * k + j] = get(a, o.transpose[0] ? i * A.leading + j : j * A.leading + i, A.type);
        for (uint64_t j = 0; j < n; j++)
            for (uint64_t i = 0; i < k; i++) y[j * k + i] = get(b, o.transpose[1] ? i * B.leading + j : j * B.leading + i, B.type);
        for (uint64_t j = 0; j < n; j++) {
            for (uint64_t i = 0; i < m; i++) {
                float sum = 0;
                for (uint64_t l = 0; l < k; l++) sum += x[i * k + l] * y[j * k + l];
                sum *= scale;
                if (keep != 0) sum += keep * get(c, j * C.leading + i, C.type);
                if (o.epilogue == 4) sum += get(o.bias, i, D.type);
                set(d, j * D.leading + i, D.type, sum);
            }
        }
    });
    return 0;
}
