"""Builds kimberlite._sys._native (cffi, API mode). Executed by setup.py: imports nothing of ours."""

from cffi import FFI

ffibuilder = FFI()

ffibuilder.cdef("""
    long km_file_system_type(int fd);
    int km_direct_io(int fd, unsigned int *memory_align, unsigned int *offset_align);
    int km_allocate(int fd, long long size);
    int km_end_with_parent(int signal_number);
    static const long KM_TMPFS;
    static const long KM_RAMFS;
    static const long KM_OVERLAYFS;
""")

ffibuilder.set_source(
    "kimberlite._sys._native",
    r"""
    #include <errno.h>
    #include <fcntl.h>
    #include <linux/magic.h>
    #include <linux/stat.h>
    #include <sys/prctl.h>
    #include <sys/syscall.h>
    #include <sys/vfs.h>
    #include <unistd.h>

    /* Linux 6.1; older headers lack it. The two words were spare in struct statx before. */
    #ifndef STATX_DIOALIGN
    #define STATX_DIOALIGN 0x00002000U
    #endif

    #define KM_TMPFS ((long)TMPFS_MAGIC)
    #define KM_RAMFS ((long)RAMFS_MAGIC)
    #define KM_OVERLAYFS ((long)OVERLAYFS_SUPER_MAGIC)

    static long km_file_system_type(int fd)
    {
        struct statfs info;
        return fstatfs(fd, &info) == 0 ? (long)info.f_type : -(long)errno;
    }

    /* 0 with both alignments (0, 0: direct I/O is impossible); -ENOTSUP when the kernel does not tell. */
    static int km_direct_io(int fd, unsigned int *memory_align, unsigned int *offset_align)
    {
        /* struct statx is 256 bytes; stx_dio_mem_align stands at 152 (linux/stat.h). */
        union { unsigned int words[64]; } info = {{0}};
        if (syscall(SYS_statx, fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &info) != 0)
            return -errno;
        if (!(info.words[0] & STATX_DIOALIGN))
            return -ENOTSUP;
        *memory_align = info.words[38];
        *offset_align = info.words[39];
        return 0;
    }

    /* Reserve the blocks of a file and set its size. */
    static int km_allocate(int fd, long long size)
    {
        return fallocate(fd, 0, 0, size) == 0 ? 0 : -errno;
    }

    static int km_end_with_parent(int signal_number)
    {
        return prctl(PR_SET_PDEATHSIG, signal_number, 0, 0, 0) == 0 ? 0 : -errno;
    }
    """,
)
