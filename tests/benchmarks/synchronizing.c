/* Preloaded into storescp: each file that it has written is synchronized to disk, and its folder, when it is closed.
 *
 * DCMTK writes objects with stdio, and calls fclose before it answers.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static void synchronize(FILE *file)
{
    static int folder = -1;
    struct stat status;
    int descriptor = fileno(file);
    if (descriptor < 0 || fstat(descriptor, &status) || !S_ISREG(status.st_mode)
        || (fcntl(descriptor, F_GETFL) & O_ACCMODE) == O_RDONLY)
        return;
    if (folder < 0)
        folder = open(getenv("SYNCHRONIZED_FOLDER"), O_RDONLY | O_DIRECTORY);
    if (fflush(file) || fsync(descriptor) || fsync(folder)) {
        perror("synchronizing");
        abort();
    }
}

int fclose(FILE *file)
{
    static int (*original)(FILE *);
    if (!original)
        original = (int (*)(FILE *))dlsym(RTLD_NEXT, "fclose");
    synchronize(file);
    return original(file);
}
