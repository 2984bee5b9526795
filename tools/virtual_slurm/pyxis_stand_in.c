/*
 * Stands in for NVIDIA pyxis, so that scripts with srun's container flags run without any image.
 * Real here: the flags are accepted, --container-mounts are bind mounts (":ro" too) that only the task sees, and
 * --container-workdir is where it starts. Left out: the image is not unpacked; the machine's own files serve.
 * The task finds the image's name in PYXIS_STAND_IN_IMAGE. A missing mount point is made, and stays.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <slurm/spank.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

SPANK_PLUGIN(pyxis_stand_in, 1)

enum { IMAGE, MOUNTS, WORKDIR, KEPT };
static char *given[KEPT];

static int keep(int which, const char *text, int remote)
{
	if (which < KEPT)
		given[which] = strdup(text);
	return 0;
}

#define VALUE(name, which) { name, "TEXT", "stand-in for pyxis", 1, which, keep }
#define FLAG(name) { name, NULL, "stand-in for pyxis, ignored", 0, KEPT, keep }
static struct spank_option options[] = {
	VALUE("container-image", IMAGE), VALUE("container-mounts", MOUNTS), VALUE("container-workdir", WORKDIR),
	VALUE("container-env", KEPT), VALUE("container-name", KEPT), VALUE("container-save", KEPT),
	FLAG("container-mount-home"), FLAG("no-container-mount-home"), FLAG("container-remap-root"),
	FLAG("no-container-remap-root"), FLAG("container-writable"), FLAG("container-readonly"),
	FLAG("container-entrypoint"), FLAG("no-container-entrypoint"), SPANK_OPTIONS_TABLE_END,
};

int slurm_spank_init(spank_t spank, int count, char **words)
{
	struct spank_option *option;

	if (spank_context() == S_CTX_SLURMD)
		return 0;
	for (option = options; option->name; option++)
		if (spank_option_register(spank, option) != ESPANK_SUCCESS)
			return -1;
	return 0;
}

static int failed(const char *what, const char *name)
{
	slurm_error("pyxis stand-in: %s %s: %s", what, name, strerror(errno));
	return -1;
}

static void make_folders(const char *path)
{
	char *copy = strdup(path), *slash;

	for (slash = copy + 1; (slash = strchr(slash, '/')); *slash++ = '/') {
		*slash = 0;
		mkdir(copy, 0755);
	}
	mkdir(copy, 0755);
	free(copy);
}

/* One SOURCE[:TARGET[:FLAGS]]. */
static int bind_mount(char *text)
{
	char *source = strsep(&text, ":"), *target = text ? strsep(&text, ":") : source;
	struct stat about;

	if (stat(source, &about))
		return failed("no mount source", source);
	if (S_ISDIR(about.st_mode))
		make_folders(target);
	if (mount(source, target, NULL, MS_BIND | MS_REC, NULL))
		return failed("cannot mount at", target);
	if (text && strstr(text, "ro") && mount(NULL, target, NULL, MS_BIND | MS_REMOUNT | MS_RDONLY, NULL))
		return failed("cannot make read-only", target);
	return 0;
}

/* As root, in the process that becomes the task. */
int slurm_spank_task_init_privileged(spank_t spank, int count, char **words)
{
	char *rest = given[MOUNTS], *one;

	if (!given[IMAGE])
		return 0;
	if (unshare(CLONE_NEWNS) || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL))
		return failed("cannot make a", "mount namespace");
	while ((one = strsep(&rest, ",")))
		if (bind_mount(one))
			return -1;
	spank_setenv(spank, "PYXIS_STAND_IN_IMAGE", given[IMAGE], 1);
	return 0;
}

int slurm_spank_task_init(spank_t spank, int count, char **words)
{
	if (given[IMAGE] && given[WORKDIR] && chdir(given[WORKDIR]))
		return failed("cannot enter", given[WORKDIR]);
	return 0;
}
