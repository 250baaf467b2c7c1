# SPDX-License-Identifier: Apache-2.0
"""What each image is made of.

A recipe is a list of layers, a layer is a list of packages. npm packages and Python wheels are pinned, since their
registries keep every version; Debian's mirrors keep the newest alone, so its packages are named without one.
"""

from __future__ import annotations

from dataclasses import dataclass

# The packages that every Debian root has, and what a usual image for building software has on top.
DEBIAN_ROOT = """
apt base-files base-passwd bash bsdutils coreutils dash debconf debian-archive-keyring debianutils diffutils dpkg
e2fsprogs findutils gcc-14-base gpgv grep gzip hostname init-system-helpers libacl1 libapt-pkg7.0 libattr1
libaudit-common libaudit1 libblkid1 libbsd0 libbz2-1.0 libc-bin libc6 libcap-ng0 libcap2 libcom-err2 libcrypt1 libdb5.3t64
libdebconfclient0 libext2fs2t64 libffi8 libgcc-s1 libgcrypt20 libgmp10 libgnutls30t64 libgpg-error0 libhogweed6t64
libidn2-0 liblastlog2-2 liblz4-1 liblzma5 libmd0 libmount1 libncursesw6 libnettle8t64 libp11-kit0 libpam-modules
libpam-modules-bin libpam-runtime libpam0g libpcre2-8-0 libseccomp2 libselinux1 libsemanage-common libsemanage2
libsepol2 libsmartcols1 libsqlite3-0 libss2 libssl3t64 libstdc++6 libsystemd0 libtasn1-6 libtinfo6 libudev1
libunistring5 libuuid1 libxxhash0 libzstd1 login login.defs logsave mawk mount ncurses-base ncurses-bin openssl
openssl-provider-legacy passwd perl-base sed sqv sysvinit-utils tar tzdata util-linux zlib1g
bzip2 ca-certificates curl file git git-man gnupg iproute2 iputils-ping less libcurl4t64 libcurl3t64-gnutls
libedit2 libevent-core-2.1-7t64 libexpat1 libgdbm6t64 libglib2.0-0t64 libkrb5-3 libldap2 libmagic-mgc libmagic1t64
libnghttp2-14 libperl5.40 libpsl5t64 libpython3-stdlib libpython3.13-minimal libpython3.13-stdlib libreadline8t64 librtmp1
libsasl2-2 libssh2-1t64 libxml2 libyaml-0-2 locales media-types nano netbase openssh-client patch perl
perl-modules-5.40 procps python3 python3-minimal python3.13 python3.13-minimal readline-common sqlite3 sudo unzip
vim vim-common vim-runtime wget xz-utils zip
""".split()

TOOLCHAIN = """
autoconf automake binutils binutils-common binutils-x86-64-linux-gnu cpp-14 cpp-14-x86-64-linux-gnu g++-14
g++-14-x86-64-linux-gnu gcc-14 gcc-14-x86-64-linux-gnu gettext libbinutils libc-dev-bin libc6-dev
libcrypt-dev libgcc-14-dev libglib2.0-dev libglib2.0-data libisl23 libmpc3 libmpfr6 libruby3.3 libssl-dev libstdc++-14-dev
libtool linux-libc-dev m4 make pkgconf ruby3.3 subversion zlib1g-dev
""".split()

WHEELS = """
ansible-core==2.19.14 botocore==1.44.5 cryptography==50.0.2 Django==5.2.19 Faker==40.54.0 grpcio==1.85.1
lxml==6.1.3 matplotlib==3.11.2 networkx==3.6.1 numpy==2.4.6 pandas==3.1.1
pillow==13.0.0 pip==26.3 protobuf==7.36.2 setuptools==84.2.1
SQLAlchemy==2.1.9 sympy==1.14.0 Twisted==26.10.0 tzdata==2026.6
""".split()

NODE_MODULES = """
@angular/common@22.2.6 @angular/core@22.2.6 @aws-sdk/client-ec2@3.1169.0 @aws-sdk/client-s3@3.1173.0 @babel/core@8.1.2
@mui/material@9.5.0 @types/node@26.6.6 antd@6.6.8 
bootstrap@5.3.9 core-js@3.51.0 d3@7.9.2 date-fns@4.4.0 eslint@10.15.0 graphql@17.1.0 highlight.js@11.12.0 lodash@4.18.1
mathjs@15.2.0 moment@2.31.0 playwright-core@1.65.1 prettier@3.10.1 prismjs@1.30.0 ramda@0.32.0
react-dom@19.3.1 react@19.3.1 rxjs@7.8.2 svelte@5.57.3 three@0.187.0 typescript@5.9.3 vue@3.5.45 webpack@5.112.2
zod@4.6.7
""".split()

MORE_SMALL_FILES = """
@fortawesome/fontawesome-free@7.3.1 aws-sdk@2.1693.0 bootstrap-icons@1.13.2 lucide-react@1.75.0 lucide-static@1.62.0
""".split()

WHEELS_OF_SMALL_FILES = """
ansible-core==2.19.14 botocore==1.44.5 Django==5.2.19 Faker==40.54.0 jedi==0.20.1 kubernetes==37.0.2 networkx==3.6.1
sympy==1.14.0 Twisted==26.10.0 tzdata==2026.6
""".split()

BIG_FILES = """
chromium golang-1.24-go libclang-cpp19 libllvm19 libqt6webenginecore6 libstd-rust-1.85 libwebkit2gtk-4.1-0
""".split()


@dataclass(frozen=True, slots=True)
class Layer:
    """The packages of one layer, and the paths below it that the layer removes."""

    debian: tuple[str, ...] = ()
    wheels: tuple[str, ...] = ()
    npm: tuple[str, ...] = ()
    removes: tuple[str, ...] = ()
    least: int = 0
    """Files smaller than this are left out."""


RECIPES: dict[str, tuple[Layer, ...]] = {
    "large": (
        Layer(debian=(*DEBIAN_ROOT, *TOOLCHAIN)),
        Layer(wheels=tuple(WHEELS), removes=("usr/share/info", "usr/share/doc/git/RelNotes", "var/log/lastlog")),
        Layer(npm=tuple(NODE_MODULES), removes=("usr/share/vim/vim91/tutor",)),
    ),
    "few-big": (Layer(debian=tuple(BIG_FILES), least=1 << 20),),
    "many-small": (Layer(wheels=tuple(WHEELS_OF_SMALL_FILES), npm=(*NODE_MODULES, *MORE_SMALL_FILES)),),
    "debian": (Layer(debian=tuple(DEBIAN_ROOT)),),
}
