// Part of emu_rt.cpp: the few cuBLAS functions we use, found by name as dlsym would find them. Plain loops, double accumulation.
// emu_config.cublas: 0 not installed, 1 works, 2 cannot be opened (a newer one than the driver), 3 its products fail.

struct cublasContext { cudaStream_t stream; };

static cublasStatus_t emu_cublas_create(cublasHandle_t *handle) {
    if (emu_config.cublas == 2) return CUBLAS_STATUS_NOT_INITIALIZED;
    *handle = new cublasContext();
    return CUBLAS_STATUS_SUCCESS;
}
static cublasStatus_t emu_cublas_destroy(cublasHandle_t handle) {
    delete handle;
    return CUBLAS_STATUS_SUCCESS;
}
static cublasStatus_t emu_cublas_set_stream(cublasHandle_t handle, cudaStream_t stream) {
    handle->stream = stream;
    return CUBLAS_STATUS_SUCCESS;
}
static cublasStatus_t emu_cublas_set_math_mode(cublasHandle_t, cublasMath_t) { return CUBLAS_STATUS_SUCCESS; }
static cublasStatus_t emu_cublas_set_workspace(cublasHandle_t, void *, size_t) { return CUBLAS_STATUS_SUCCESS; }

static size_t element_bytes(cudaDataType type) { return type == CUDA_R_32F ? 4 : 2; }
static bool element_known(cudaDataType type) { return type == CUDA_R_32F || type == CUDA_R_16F || type == CUDA_R_16BF; }
static double element(const void *p, cudaDataType type, size_t i) {
    if (type == CUDA_R_16F) return __half2float(((const __half *)p)[i]);
    if (type == CUDA_R_16BF) return __bfloat162float(((const __nv_bfloat16 *)p)[i]);
    return ((const float *)p)[i];
}
// Column-major, as BLAS has it: C (m, n) = alpha op(A) (m, k) op(B) (k, n) + beta C.
struct Gemm {
    bool a_turned, b_turned;
    int m, n, k, lda, ldb, ldc;
    float alpha, beta;
    const void *a, *b;
    void *c;
    cudaDataType a_type, b_type, c_type;
};
static void run_gemm(const Gemm &g) {
    if (sticky_error || !still_there(g.a) || !still_there(g.b) || !still_there(g.c)) return;
    in_copy = true;
    const size_t k = (size_t)g.k;
    std::vector<double> a((size_t)g.m * k), b(k); // rows of op(A), a column of op(B): converted once
    for (size_t i = 0; i < (size_t)g.m; i++)
        for (size_t l = 0; l < k; l++) a[i * k + l] = element(g.a, g.a_type, g.a_turned ? l + i * (size_t)g.lda : i + l * (size_t)g.lda);
    for (int j = 0; j < g.n; j++) {
        for (size_t l = 0; l < k; l++) b[l] = element(g.b, g.b_type, g.b_turned ? (size_t)j + l * (size_t)g.ldb : l + (size_t)j * (size_t)g.ldb);
        for (int i = 0; i < g.m; i++) {
            const size_t at = (size_t)i + (size_t)j * (size_t)g.ldc;
            double sum = 0;
            for (size_t l = 0; l < k; l++) sum += a[(size_t)i * k + l] * b[l];
            const float value = g.alpha * (float)sum + (g.beta != 0 ? g.beta * (float)element(g.c, g.c_type, at) : 0.0f); // beta 0: C is not read
            if (g.c_type == CUDA_R_16F) ((__half *)g.c)[at] = __float2half(value);
            else if (g.c_type == CUDA_R_16BF) ((__nv_bfloat16 *)g.c)[at] = __float2bfloat16(value);
            else ((float *)g.c)[at] = value;
        }
        checks_written((char *)g.c + (size_t)j * (size_t)g.ldc * element_bytes(g.c_type), (size_t)g.m * element_bytes(g.c_type));
    }
    in_copy = false;
    close_allocations();
}
static cublasStatus_t emu_cublas_gemm(cublasHandle_t handle, cublasOperation_t a_op, cublasOperation_t b_op, int m, int n, int k, const void *alpha,
                                      const void *a, cudaDataType a_type, int lda, const void *b, cudaDataType b_type, int ldb, const void *beta,
                                      void *c, cudaDataType c_type, int ldc, cublasComputeType_t compute, cublasGemmAlgo_t) {
    if (emu_config.cublas == 3) return CUBLAS_STATUS_EXECUTION_FAILED;
    if (compute != CUBLAS_COMPUTE_32F && compute != CUBLAS_COMPUTE_32F_FAST_16F && compute != CUBLAS_COMPUTE_32F_FAST_TF32)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    if (a_type != b_type || !element_known(a_type) || !element_known(c_type)) return CUBLAS_STATUS_NOT_SUPPORTED;
    const bool a_turned = a_op != CUBLAS_OP_N, b_turned = b_op != CUBLAS_OP_N;
    const int a_rows = a_turned ? k : m, a_columns = a_turned ? m : k, b_rows = b_turned ? n : k, b_columns = b_turned ? k : n;
    if (m < 0 || n < 0 || k < 0 || lda < a_rows || ldb < b_rows || ldc < m) return CUBLAS_STATUS_INVALID_VALUE;
    if (!m || !n || !k) return CUBLAS_STATUS_SUCCESS;
    const size_t a_bytes = ((size_t)lda * (size_t)(a_columns - 1) + (size_t)a_rows) * element_bytes(a_type);
    const size_t b_bytes = ((size_t)ldb * (size_t)(b_columns - 1) + (size_t)b_rows) * element_bytes(b_type);
    const size_t c_bytes = ((size_t)ldc * (size_t)(n - 1) + (size_t)m) * element_bytes(c_type);
    if (side_of(a, a_bytes, "cublas A") != DEVICE || side_of(b, b_bytes, "cublas B") != DEVICE || side_of(c, c_bytes, "cublas C") != DEVICE)
        return CUBLAS_STATUS_INVALID_VALUE;
    const Gemm g = {a_turned, b_turned, m, n, k, lda, ldb, ldc, *(const float *)alpha, *(const float *)beta, a, b, c, a_type, b_type, c_type};
    launches["cublasGemmEx"]++;
    const double us = emu_price ? 0 : 2.0 * m * n * k / (emu_config.tflops * 1e6);
    issue(handle->stream, nullptr, std::max(emu_config.launch_us, us), [g]() {
        if (!emu_config.phantom) run_gemm(g);
    });
    return CUBLAS_STATUS_SUCCESS;
}

static const struct { const char *name; void *function; } cublas_functions[] = {
    {"cublasCreate_v2", (void *)emu_cublas_create},       {"cublasDestroy_v2", (void *)emu_cublas_destroy},
    {"cublasSetStream_v2", (void *)emu_cublas_set_stream}, {"cublasSetMathMode", (void *)emu_cublas_set_math_mode},
    {"cublasSetWorkspace_v2", (void *)emu_cublas_set_workspace}, {"cublasGemmEx", (void *)emu_cublas_gemm},
};
void *emu_library_open(const char *name) {
    init();
    return emu_config.cublas && strstr(name, "cublas") ? (void *)cublas_functions : nullptr;
}
void *emu_library_symbol(void *library, const char *name) {
    if (library == (void *)cublas_functions)
        for (auto &known : cublas_functions)
            if (!strcmp(known.name, name)) return known.function;
    return nullptr;
}
void emu_library_close(void *) {}
