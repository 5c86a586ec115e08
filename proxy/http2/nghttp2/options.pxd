"""What a session of libnghttp2 is made with, and Cython has no words for."""

from libc.stdint cimport uint64_t

from proxy.http2.nghttp2.libnghttp2 cimport nghttp2_mem, nghttp2_option

cdef extern from *:
    """
    #include <nghttp2/nghttp2.h>

    /* Limits that are younger than libnghttp2 1.52, or that distributions have put into it: its version tells nothing
       about them. A weak symbol is NULL where the library at hand does not have the function. */
    extern void nghttp2_option_set_stream_reset_rate_limit(nghttp2_option *, uint64_t, uint64_t) __attribute__((weak));
    extern void nghttp2_option_set_max_continuations(nghttp2_option *, size_t) __attribute__((weak));
    extern void nghttp2_option_set_glitch_rate_limit(nghttp2_option *, uint64_t, uint64_t) __attribute__((weak));

    static void set_optional_limits(nghttp2_option *option, size_t continuations, uint64_t resets, uint64_t glitches,
                                 uint64_t seconds) {
        if (nghttp2_option_set_max_continuations) {
            nghttp2_option_set_max_continuations(option, continuations);
        }
        if (nghttp2_option_set_stream_reset_rate_limit) {
            nghttp2_option_set_stream_reset_rate_limit(option, resets * seconds, resets);
        }
        if (nghttp2_option_set_glitch_rate_limit) {
            nghttp2_option_set_glitch_rate_limit(option, glitches * seconds, glitches);
        }
    }

    /* The library asks for many small pieces, of which Python's allocator makes less work than the C library's. Every
       call into a session, and its end, comes from a thread that holds the interpreter. */
    static void *python_malloc(size_t size, void *unused) { return PyObject_Malloc(size); }
    static void python_free(void *piece, void *unused) { PyObject_Free(piece); }
    static void *python_calloc(size_t count, size_t size, void *unused) { return PyObject_Calloc(count, size); }
    static void *python_realloc(void *piece, size_t size, void *unused) { return PyObject_Realloc(piece, size); }

    static nghttp2_mem python_memory = {NULL, python_malloc, python_free, python_calloc, python_realloc};
    """
    nghttp2_mem python_memory

    void set_optional_limits(
        nghttp2_option *option, size_t continuations, uint64_t resets, uint64_t glitches, uint64_t seconds
    )
