cimport cython

cdef frozenset _PSEUDO_FIELDS
cdef frozenset _NOT_FOR_UPSTREAM
cdef frozenset _PROXY_AUTHENTICATION
cdef frozenset _NOT_IN_TRAILERS
cdef dict _METHOD_LINES
cdef tuple _POST_LINE

@cython.locals(line=tuple, name=bytes, host=bytes)
cpdef bytes request_authority(list head)
cpdef tuple method_line(bytes method)
@cython.locals(line=tuple)
cpdef list end_to_end(list head)
@cython.locals(line=tuple)
cpdef tuple deployment_lines(list head)
cdef bint _is_own(bytes name)
@cython.locals(line=tuple)
cpdef list end_to_end_response(list head)
cpdef list end_to_end_trailers(list trailers)
@cython.locals(fields=list)
cpdef list signed_head(list lines, tuple method, tuple scheme, tuple authority, tuple path, tuple token)
