"The package's metadata, read from settings.ini: the one place where names, versions and requirements stand."
from configparser import ConfigParser
from pathlib import Path
from tempfile import TemporaryDirectory

from setuptools import find_packages, setup

here = Path(__file__).parent
ini = ConfigParser(delimiters=['='])
ini.read(here / 'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
readme = here / 'README.md'
licences = dict(apache2='Apache-2.0', mit='MIT', bsd3='BSD-3-Clause')
statuses = ['Planning', 'Pre-Alpha', 'Alpha', 'Beta', 'Production/Stable', 'Mature', 'Inactive']
status = int(cfg['status'])

with TemporaryDirectory() as build:  # not ./build, where modules that no longer exist may lie from an earlier time: they would go into the wheel
    setup(
        name=cfg['lib_name'],
        version=cfg['version'],
        description=cfg['description'],
        long_description=readme.read_text(encoding='utf-8') if readme.exists() else cfg['description'],
        long_description_content_type='text/markdown',
        keywords=cfg['keywords'],
        author=cfg['author'],
        author_email=cfg['author_email'],
        license=licences[cfg['license']],
        license_files=['LICENSE'],
        url=cfg['git_url'],
        project_urls={'Documentation': cfg['doc_host'] + cfg['doc_baseurl'], 'Source': cfg['git_url']},
        classifiers=[
            f'Development Status :: {status} - {statuses[status - 1]}',
            f"Intended Audience :: {cfg['audience']}",
            f"Natural Language :: {cfg['language']}",
            'Programming Language :: Python :: 3',
            'Topic :: Scientific/Engineering :: Artificial Intelligence',
        ],
        packages=find_packages(include=[cfg['lib_path'], f"{cfg['lib_path']}.*"]),
        package_data={cfg['lib_path']: ['tables/*.csv']},
        python_requires=f">={cfg['min_python']}",
        install_requires=cfg['requirements'].split(),
        extras_require={k.removesuffix('_requirements'): v.split() for k, v in cfg.items() if k.endswith('_requirements')},
        entry_points={'nbdev': [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"], 'console_scripts': cfg['console_scripts'].split()},
        zip_safe=False,
        options={'build': {'build_base': build}},
    )
